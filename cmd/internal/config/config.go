package config

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Config is a whole valid configuration, with all defaults filled in.
type Config struct {
	Daemon   Daemon
	Services []Service // sorted by name
}

// Daemon is what concerns the daemon itself.
type Daemon struct {
	Podman    string // URI, always unix:// and an absolute path
	Admin     string // absolute path of the admin socket
	Metrics   string // HOST:PORT, "" = off
	State     string // absolute path of a directory
	LogLevel  LogLevel
	LogFormat LogFormat
}

// Service is one name, the addresses it answers on, and where replicas come
// from: Container, Backends, or both.
type Service struct {
	Name          string
	Listen        []Listen // at least one, in the order of the file
	Balance       Balance
	Affinity      time.Duration // 0 = off
	Handover      Handover
	Forward       Forward
	Source        Source
	ProxyProtocol ProxyProtocol
	Allow         []netip.Prefix // who may wake it; empty = everyone
	WakeAfter     WakeAfter
	Limits        Limits

	Container *Container // nil: sluice starts nothing, there are only Backends
	Scale     Scale
	Start     Start
	Health    Health
	Drain     Drain
	Backends  []Backend
	Canary    *Canary // nil = none
}

// Listen is one address of a service. It is comparable.
type Listen struct {
	Addr  netip.Addr // the zero Addr = every local address of both families
	Port  uint16
	Proto Proto
}

// Wildcard reports whether l stands for every local address.
func (l Listen) Wildcard() bool { return !l.Addr.IsValid() }

// String returns l as it is written in the file: "192.0.2.10:80/tcp",
// "[2001:db8::10]:80/tcp" or ":80/tcp".
func (l Listen) String() string {
	if l.Wildcard() {
		return ":" + strconv.Itoa(int(l.Port)) + "/" + string(l.Proto)
	}
	return netip.AddrPortFrom(l.Addr, l.Port).String() + "/" + string(l.Proto)
}

// Limits bounds what is let through to a service; 0 = no limit.
type Limits struct {
	MaxFlows                 int // live flows
	MaxFlowsPerClient        int
	MaxNewPerSecond          int // new flows
	MaxNewPerSecondPerClient int
}

// Container is how a replica is made.
type Container struct {
	Image       string // always with its registry
	Port        uint16 // where the application listens inside
	Command     []string
	Env         map[string]string
	Volumes     []Volume
	Network     string
	Memory      int64   // bytes, 0 = no limit
	CPUs        float64 // 0 = no limit
	Pull        Pull
	StopTimeout time.Duration // from SIGTERM to SIGKILL, whole seconds
	Priority    int           // of replicas among Backends; lower first
}

// Volume is one mount of a container.
type Volume struct {
	Source  string   // an absolute path or the name of a volume
	Target  string   // an absolute path
	Options []string // as Podman knows them: "ro", "Z", …
}

// String returns v as it is written in the file.
func (v Volume) String() string {
	s := v.Source + ":" + v.Target
	if len(v.Options) > 0 {
		s += ":" + strings.Join(v.Options, ",")
	}
	return s
}

// Scale is when replicas come and go.
type Scale struct {
	Min, Max        int
	FlowsPerReplica int     // live flows, 0 = not used
	RatePerReplica  float64 // new flows per second, 0 = not used
	Utilization     float64 // share of the two targets above to aim for, in (0, 1]
	StableWindow    time.Duration
	PanicWindow     time.Duration // at most StableWindow
	SlowStart       time.Duration // a new replica's share of new flows grows for so long; 0 = at once all
	Idle            time.Duration // at zero load this long: down to Min
	IdleCounts      IdleCounts
	Sleep           Sleep
	StopAfter       time.Duration // 0 = never
}

// Start is what happens on the way from zero.
type Start struct {
	Timeout time.Duration // from wake to ready
	Backlog int           // the kernel caps it at net.core.somaxconn
}

// Health is how a backend proves that it works.
type Health struct {
	Type     HealthType
	Path     string   // for http
	Command  []string // for exec, run inside the container
	Interval time.Duration
	Timeout  time.Duration // of one attempt
	Rise     int           // successes in a row until healthy again
	Fall     int           // failures in a row until unhealthy
}

// Drain is how a replica is taken away.
type Drain struct {
	Timeout time.Duration // then what is left is cut; 0 = wait for ever
}

// Backend is one that sluice does not start: either Addr or SRV is set.
type Backend struct {
	Addr     netip.AddrPort
	SRV      string // as "_pg._tcp.example.org"
	Weight   int    // 0 = no new flows
	Priority int    // lower first
}

// Canary is a second kind of replica that gets Percent of the new flows.
type Canary struct {
	Percent   int
	Container Container // with what it takes over from the service's own
	Digest    string    // of its container section as it is written
}

// Values of keys that are one of a few words. The zero value of each type is
// invalid and never part of a loaded Config.
type (
	// Proto is the transport protocol of an address.
	Proto string

	// LogLevel is the least severe that is logged.
	LogLevel string

	// LogFormat is how a line of the log is written.
	LogFormat string

	// Balance is how new flows are spread over replicas.
	Balance string

	// Handover is what becomes of a connection that was accepted before its replica was ready.
	Handover string

	// Forward is how flows reach a replica.
	Forward string

	// Source is the address that a replica sees as the client.
	Source string

	// ProxyProtocol is the version of the header that names the client to a replica.
	ProxyProtocol string

	// WakeAfter is what of a connection starts a sleeping service.
	WakeAfter string

	// Pull is when an image is fetched.
	Pull string

	// IdleCounts is what makes a service busy.
	IdleCounts string

	// Sleep is what becomes of replicas that are not needed.
	Sleep string

	// HealthType is the kind of a check.
	HealthType string
)

// The words, as in the file.
const (
	TCP Proto = "tcp"
	UDP Proto = "udp"

	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"

	LogAuto    LogFormat = "auto" // console on a terminal, else json
	LogConsole LogFormat = "console"
	LogJSON    LogFormat = "json"

	RoundRobin       Balance = "round-robin"
	Random           Balance = "random"
	LeastConnections Balance = "least-connections"
	SourceHash       Balance = "source-hash"
	Maglev           Balance = "maglev"

	HandoverAuto  Handover = "auto"
	HandoverRelay Handover = "relay"

	ForwardNAT   Forward = "nat"
	ForwardProxy Forward = "proxy" // every connection is relayed

	SourcePreserve   Source = "preserve"
	SourceMasquerade Source = "masquerade"

	ProxyOff ProxyProtocol = "off"
	ProxyV1  ProxyProtocol = "v1"
	ProxyV2  ProxyProtocol = "v2"

	WakeAfterAccept WakeAfter = "accept" // a completed handshake wakes
	WakeAfterData   WakeAfter = "data"   // the client's first byte wakes

	PullMissing Pull = "missing"
	PullAlways  Pull = "always"
	PullNever   Pull = "never"
	PullNewer   Pull = "newer"

	IdleFlows IdleCounts = "flows" // idle = no live flow
	IdleBytes IdleCounts = "bytes" // idle = no live flow that moved a byte

	SleepStop     Sleep = "stop"
	SleepPrepared Sleep = "prepared"
	SleepPause    Sleep = "pause"

	HealthTCP  HealthType = "tcp"
	HealthHTTP HealthType = "http"
	HealthExec HealthType = "exec"
	HealthNone HealthType = "none"
)
