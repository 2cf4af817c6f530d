package config

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"sluice/nft"
)

// place is where something was defined.
type place struct {
	file string
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// decode makes one configuration of all files and holds them against each other.
func decode(r *report, files []source) (*Config, error) {
	c := &Config{Daemon: defaultDaemon()}
	daemon := map[string]place{}
	services := map[string]place{}
	var listens []listenAt

	for _, f := range files {
		top := &table{r: r, file: f.name, line: 1, n: f.root}

		d := top.sub("daemon")
		decodeDaemon(d, &c.Daemon)
		for _, key := range d.keys() {
			if first, dup := daemon[key]; dup {
				d.errorf(key, "is already set in %s: keep one of them", first)
				continue
			}
			daemon[key] = place{f.name, d.n.sub[key].line}
		}

		all := top.sub("service")
		all.names = true
		top.unknown(top)
		for _, name := range all.keys() {
			t := all.sub(name)
			if t.n == nil {
				continue // not a table, and reported as such
			}
			if err := serviceName(name); err != nil {
				t.errorAt(t.line, "", "%v", err)
				continue
			}
			if first, dup := services[name]; dup {
				t.errorAt(t.line, "", "is already defined in %s: keep one of them", first)
				continue
			}
			services[name] = place{f.name, t.line}

			s := defaultService(name)
			listens = append(listens, decodeService(t, &s)...)
			t.unknown(t)
			c.Services = append(c.Services, s)
		}
	}

	clashes(listens, c.Daemon.Metrics)
	if err := r.err(); err != nil {
		return nil, err
	}
	slices.SortFunc(c.Services, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	return c, nil
}

func decodeDaemon(t *table, d *Daemon) {
	t.str("podman", &d.Podman, podmanURI)
	t.str("admin", &d.Admin, socketPath)
	t.str("metrics", &d.Metrics, hostPort)
	t.str("state", &d.State, absolutePath)
	word(t, "log_level", &d.LogLevel, LogDebug, LogInfo, LogWarn, LogError)
	word(t, "log_format", &d.LogFormat, LogAuto, LogConsole, LogJSON)
}

// decodeService also returns where the addresses stand, in their order.
func decodeService(t *table, s *Service) []listenAt {
	at := decodeListen(t, s)
	word(t, "balance", &s.Balance, RoundRobin, Random, LeastConnections, SourceHash, Maglev)
	t.duration("affinity", &s.Affinity, 0)
	if most := last(nft.Affinities()); s.Affinity > most {
		t.errorf("affinity", "must be at most %s, got %s", most, s.Affinity)
	}
	word(t, "handover", &s.Handover, HandoverAuto, HandoverRelay)
	word(t, "forward", &s.Forward, ForwardNAT, ForwardProxy)
	word(t, "source", &s.Source, SourcePreserve, SourceMasquerade)
	word(t, "proxy_protocol", &s.ProxyProtocol, ProxyOff, ProxyV1, ProxyV2)
	word(t, "wake_after", &s.WakeAfter, WakeAfterAccept, WakeAfterData)
	t.each("allow", func(v string, _ int) error {
		p, err := parsePrefix(v)
		if err == nil {
			s.Allow = append(s.Allow, p)
		}
		return err
	})
	t.integer("max_flows", &s.Limits.MaxFlows, 0, math.MaxInt32)
	perClient := int(last(nft.ClientLimits()))
	t.integer("max_flows_per_client", &s.Limits.MaxFlowsPerClient, 0, perClient)
	t.integer("max_new_per_second", &s.Limits.MaxNewPerSecond, 0, nft.MaxNewPerSecond)
	t.integer("max_new_per_second_per_client", &s.Limits.MaxNewPerSecondPerClient, 0, perClient)

	backends := t.tables("backend")
	decodeBackends(backends, s)

	container := t.sub("container")
	c := defaultContainer()
	// An error inside [[backend]] must not bring up one about a container.
	required := container.n != nil || !t.has("backend")
	decodeContainer(container, &c, required)
	if required {
		s.Container = &c
	}
	if c.Priority != defaultContainer().Priority && !t.has("backend") {
		container.errorf("priority", "is one among backends, and this service has none: remove it, or add [[service.%s.backend]]", s.Name)
	}

	scale, unscaled := t.sub("scale"), s.Scale
	decodeScale(scale, &s.Scale)
	if !required && s.Scale != unscaled {
		scale.errorAt(scale.line, "", "is about replicas, and this service has no container: remove it")
	}
	decodeStart(t.sub("start"), &s.Start)
	if !s.speaks(TCP) && s.speaks(UDP) {
		s.Health.Type = HealthNone // nobody listens for tcp
	}
	decodeHealth(t.sub("health"), &s.Health, required)
	t.sub("drain").duration("timeout", &s.Drain.Timeout, 0)
	decodeCanary(t.sub("canary"), s)
	decodeEffects(t, s)
	return at
}

// speaks says whether the service has an address of that protocol.
func (s *Service) speaks(p Proto) bool {
	return slices.ContainsFunc(s.Listen, func(l Listen) bool { return l.Proto == p })
}

func last[T any](list []T) T { return list[len(list)-1] }

// decodeEffects refuses values that something else in the service keeps from
// having any effect.
func decodeEffects(t *table, s *Service) {
	if s.Forward == ForwardProxy {
		if s.speaks(UDP) {
			t.errorf("forward", "only TCP can be relayed, and this service listens at UDP: make two services of it")
		}
		if s.Balance != RoundRobin && s.Balance != LeastConnections {
			t.errorf("balance", "has no effect with forward = \"proxy\", which takes the replica with the fewest connections for its weight: remove it")
		}
		if s.Affinity > 0 {
			t.errorf("affinity", "has no effect with forward = \"proxy\", which takes the replica with the fewest connections for its weight: remove it")
		}
	}
	if s.speaks(UDP) && !s.speaks(TCP) {
		if s.ProxyProtocol != ProxyOff {
			t.errorf("proxy_protocol", "goes before TCP connections, and this service listens at UDP alone: remove it")
		}
		if s.Handover != HandoverAuto {
			t.errorf("handover", "is about TCP connections, and this service listens at UDP alone: remove it")
		}
	}
}

func decodeListen(t *table, s *Service) []listenAt {
	var at []listenAt
	t.each("listen", func(v string, line int) error {
		l, err := parseListen(v)
		if err == nil {
			s.Listen = append(s.Listen, l)
			at = append(at, listenAt{l, s.Name, t, line})
		}
		return err
	})
	if n := t.n.sub["listen"]; n == nil {
		t.errorf("listen", "is missing: give at least one address such as \"192.0.2.10:80/tcp\"")
	} else if n.kind == unstable.Array && len(n.items) == 0 {
		t.errorf("listen", "is empty: give at least one address such as \"192.0.2.10:80/tcp\"")
	}
	return at
}

// decodeContainer fills c; required says that image and port must be there.
func decodeContainer(t *table, c *Container, required bool) {
	t.str("image", &c.Image, imageName)
	port := int(c.Port)
	t.integer("port", &port, 1, math.MaxUint16)
	c.Port = uint16(port) //nolint:gosec // in range as checked
	t.integer("priority", &c.Priority, 0, math.MaxUint16)
	if required {
		if !t.has("image") {
			t.errorf("image", "is missing: name the image that replicas are made of")
		}
		if !t.has("port") {
			t.errorf("port", "is missing: give the port on which the application listens inside the container")
		}
	}
	t.strings("command", &c.Command, clean)
	decodeEnv(t.sub("env"), c)
	t.each("volumes", func(s string, _ int) error {
		v, err := parseVolume(s)
		if err != nil {
			return err
		}
		for _, other := range c.Volumes {
			if other.Target == v.Target {
				return fmt.Errorf("%q: target %s is taken by %q", s, v.Target, other)
			}
		}
		c.Volumes = append(c.Volumes, v)
		return nil
	})
	t.str("network", &c.Network, networkName)
	parsed(t, "memory", &c.Memory, parseMemory)
	t.number("cpus", &c.CPUs, 0, math.MaxUint16)
	word(t, "pull", &c.Pull, PullMissing, PullAlways, PullNever, PullNewer)
	t.duration("stop_timeout", &c.StopTimeout, 0)
	if t.has("stop_timeout") && c.StopTimeout%time.Second != 0 {
		// Podman takes seconds, and 0 from "500ms" would be a SIGKILL at once.
		t.errorf("stop_timeout", "must be whole seconds, got %s", t.n.sub["stop_timeout"])
	}
}

func decodeEnv(t *table, c *Container) {
	t.names = true
	for _, name := range t.keys() {
		if err := envName(name); err != nil {
			t.errorf(name, "%v", err)
			continue
		}
		var value string
		t.str(name, &value, clean)
		if c.Env == nil {
			c.Env = map[string]string{}
		}
		c.Env[name] = value
	}
}

// Slots of a service are counted in the hundreds; more replicas than this on
// one machine are a slip of the keyboard.
const maxReplicas = 1024

func decodeScale(t *table, s *Scale) {
	t.integer("min", &s.Min, 0, maxReplicas)
	t.integer("max", &s.Max, 1, maxReplicas)
	switch {
	case s.Max >= s.Min:
	case t.has("max"):
		t.errorf("max", "must be at least min (%d), got %d: raise max or lower min", s.Min, s.Max)
	default:
		t.errorf("min", "must be at most max (%d, the default), got %d: set max", s.Max, s.Min)
	}

	t.integer("flows_per_replica", &s.FlowsPerReplica, 0, math.MaxInt32)
	t.number("rate_per_replica", &s.RatePerReplica, 0, math.MaxInt32)
	if s.FlowsPerReplica == 0 && s.RatePerReplica == 0 {
		t.errorf("flows_per_replica", "must be at least 1 as long as rate_per_replica is not set")
	}
	t.number("utilization", &s.Utilization, 0, 1)
	if s.Utilization == 0 {
		t.errorf("utilization", "must be more than 0, got %s", t.n.sub["utilization"])
	}
	t.duration("stable_window", &s.StableWindow, 1)
	t.duration("panic_window", &s.PanicWindow, 1)
	t.duration("slow_start", &s.SlowStart, 0)
	switch {
	case s.PanicWindow <= s.StableWindow:
	case t.has("panic_window"):
		t.errorf("panic_window", "must be at most stable_window (%s), got %s", s.StableWindow, s.PanicWindow)
	default:
		t.errorf("stable_window", "must be at least panic_window (%s, the default), got %s: set panic_window",
			s.PanicWindow, s.StableWindow)
	}

	t.duration("idle", &s.Idle, 1)
	word(t, "idle_counts", &s.IdleCounts, IdleFlows, IdleBytes)
	word(t, "sleep", &s.Sleep, SleepStop, SleepPrepared, SleepPause)
	t.duration("stop_after", &s.StopAfter, 0)
	if s.StopAfter > 0 && s.Sleep == SleepStop {
		t.errorf("stop_after", "needs sleep = \"prepared\" or \"pause\": with \"stop\" nothing is left to be stopped")
	}
}

func decodeStart(t *table, s *Start) {
	t.duration("timeout", &s.Timeout, 1)
	t.integer("backlog", &s.Backlog, 1, math.MaxUint16)
}

// decodeHealth fills h; container says that the service has one.
func decodeHealth(t *table, h *Health, container bool) {
	word(t, "type", &h.Type, HealthTCP, HealthHTTP, HealthExec, HealthNone)
	path := h.Path
	t.str("path", &h.Path, httpPath)
	if h.Type != HealthHTTP && h.Path != path {
		t.errorf("path", "is only used by http: set type = \"http\" or remove path")
	}
	t.strings("command", &h.Command, clean)
	switch {
	case h.Type != HealthExec && len(h.Command) > 0:
		t.errorf("command", "is only used by exec: set type = \"exec\" or remove command")
	case h.Type == HealthExec && !container:
		t.errorf("type", "exec runs inside a container, and this service has none: use tcp, http or none")
	case h.Type == HealthExec && (len(h.Command) == 0 || h.Command[0] == ""):
		t.errorf("command", "is missing: exec needs a program to run inside the container")
	}
	t.duration("interval", &h.Interval, 1)
	t.duration("timeout", &h.Timeout, 1)
	t.integer("rise", &h.Rise, 1, math.MaxUint16)
	t.integer("fall", &h.Fall, 1, math.MaxUint16)
}

func decodeBackends(tables []*table, s *Service) {
	addrs := map[netip.AddrPort]bool{}
	for _, t := range tables {
		b := defaultBackend()
		parsed(t, "address", &b.Addr, parseBackend)
		t.str("srv", &b.SRV, srvName)
		t.integer("weight", &b.Weight, 0, math.MaxUint16)
		t.integer("priority", &b.Priority, 0, math.MaxUint16)
		switch {
		case t.has("address") && t.has("srv"):
			t.errorf("srv", "excludes address: make two backends of them")
		case !t.has("address") && !t.has("srv"):
			t.errorAt(t.line, "", "needs address or srv")
		case b.Addr.IsValid() && addrs[b.Addr]:
			t.errorf("address", "%q is listed twice", b.Addr)
		}
		addrs[b.Addr] = true
		s.Backends = append(s.Backends, b)
	}
}
