package config

import "time"

// Every default of the file stands in this file and nowhere else.

// DefaultState is where the daemon keeps what a restart must not forget.
const DefaultState = "/var/lib/sluice"

func defaultDaemon() Daemon {
	return Daemon{
		Podman:    "unix:///run/podman/podman.sock",
		Admin:     "/run/sluice/admin.sock",
		Metrics:   "127.0.0.1:9464",
		State:     DefaultState,
		LogLevel:  LogInfo,
		LogFormat: LogAuto,
	}
}

func defaultService(name string) Service {
	return Service{
		Name:          name,
		Balance:       RoundRobin,
		Handover:      HandoverAuto,
		Forward:       ForwardNAT,
		Source:        SourcePreserve,
		ProxyProtocol: ProxyOff,
		WakeAfter:     WakeAfterAccept,
		Scale: Scale{
			Min:             0,
			Max:             4,
			FlowsPerReplica: 100,
			RatePerReplica:  0,
			// A target means what it says. Whoever wants head-room while
			// a replica starts asks for it.
			Utilization:  1,
			StableWindow: 60 * time.Second,
			PanicWindow:  6 * time.Second,
			Idle:         60 * time.Second,
			IdleCounts:   IdleFlows,
			Sleep:        SleepStop,
		},
		Start: Start{Timeout: 30 * time.Second, Backlog: 1024},
		Health: Health{
			Type:     HealthTCP,
			Path:     "/",
			Interval: 2 * time.Second,
			Timeout:  time.Second,
			Rise:     1,
			Fall:     3,
		},
		Drain: Drain{Timeout: 60 * time.Second},
	}
}

func defaultContainer() Container {
	return Container{
		Network:     "podman",
		Pull:        PullMissing,
		StopTimeout: 10 * time.Second,
	}
}

func defaultBackend() Backend { return Backend{Weight: 100} }

func defaultCanary() Canary { return Canary{Percent: 10} }
