package podman

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/specgen"
	runtime "github.com/opencontainers/runtime-spec/specs-go"
	nettypes "go.podman.io/common/libnetwork/types"
	"go.podman.io/image/v5/manifest"
)

// Labels of a replica's container.
const (
	LabelService = "sluice.service" // name of the service
	LabelIndex   = "sluice.index"   // N of sluice-SERVICE-N
	LabelPort    = "sluice.port"    // the port its program listens on
	LabelSpec    = "sluice.spec"    // Hash of the Spec it was made from
)

// DefaultNetwork is Podman's own bridge network, which always exists.
const DefaultNetwork = "podman"

// A Spec says how the replicas of a service are made. It is a plain value;
// Podman is not asked about it before Create.
type Spec struct {
	Service string // what the containers are named after
	Image   string // as for podman run
	Port    uint16 // where the program listens, inside

	Command []string          // arguments, in place of the image's own
	Env     map[string]string // added to the image's
	Volumes []string          // [SOURCE:]DEST[:OPTIONS] as for podman run -v; SOURCE is an absolute path or the name of a volume
	Network string            // a bridge network; "" means DefaultNetwork

	Memory int64   // limit in bytes; 0 means none
	CPUs   float64 // limit in processors, 0.01 or more; 0 means none

	// Health is a command that Probe runs inside the replica.
	Health []string

	// StopTimeout is how long others who stop the container (podman stop, a
	// shutdown of the host) give the program; Stop has its own. 0 means
	// Podman's default of 10 s.
	StopTimeout time.Duration

	// Pull says when the image is fetched: missing (also ""), always, never or
	// newer. It does not enter the hash.
	Pull string
}

// Name is the name of the service's Nth container, counted from 1.
func Name(service string, index int) string {
	return "sluice-" + service + "-" + strconv.Itoa(index)
}

// Hash names all that defines a replica's container in 12 hexadecimal digits:
// two Specs with the same hash make the same container. It is the same in every
// process and does not tell an absent list from an empty one.
func (s Spec) Hash() string {
	if s.Network == "" {
		s.Network = DefaultNetwork
	}
	// Keys are sorted by encoding/json. A field added later must be omitempty
	// too, or every replica would be replaced by an update of the daemon.
	text, err := json.Marshal(struct {
		Service     string            `json:",omitempty"`
		Image       string            `json:",omitempty"`
		Port        uint16            `json:",omitempty"`
		Command     []string          `json:",omitempty"`
		Env         map[string]string `json:",omitempty"`
		Volumes     []string          `json:",omitempty"`
		Network     string            `json:",omitempty"`
		Memory      int64             `json:",omitempty"`
		CPUs        float64           `json:",omitempty"`
		Health      []string          `json:",omitempty"`
		StopTimeout time.Duration     `json:",omitempty"`
	}{
		s.Service, s.Image, s.Port, s.Command, s.Env, s.Volumes, s.Network,
		s.Memory, s.CPUs, s.Health, s.StopTimeout,
	})
	if err != nil { // a NaN or infinite number of processors, which Check refuses
		text = fmt.Appendf(nil, "%v", s)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}

// Check finds what can be known to be wrong without asking Podman. The error
// wraps ErrSpec and names the field as the configuration file does.
func (s Spec) Check() error {
	_, err := s.generator(1)
	return err
}

// check is the part of Check that generator does not do in passing.
func (s Spec) check() error {
	switch {
	case !validName(s.Service):
		return fmt.Errorf("%w: service name %q: letters, digits, '_', '.', '-' only, a letter or digit first", ErrSpec, s.Service)
	case strings.TrimSpace(s.Image) == "":
		return fmt.Errorf("%w: image is empty", ErrSpec)
	case s.Port == 0:
		return fmt.Errorf("%w: port is 0", ErrSpec)
	case s.Memory < 0:
		return fmt.Errorf("%w: memory %d is negative", ErrSpec, s.Memory)
	case s.CPUs != 0 && !(s.CPUs >= 0.01 && s.CPUs <= math.MaxInt32):
		return fmt.Errorf("%w: cpus %v is not between 0.01 and %d", ErrSpec, s.CPUs, math.MaxInt32)
	case s.StopTimeout < 0:
		return fmt.Errorf("%w: stop timeout %v is negative", ErrSpec, s.StopTimeout)
	}
	switch s.Pull {
	case "", "missing", "always", "never", "newer":
	default:
		return fmt.Errorf("%w: pull %q is not one of missing, always, never, newer", ErrSpec, s.Pull)
	}
	return checkNetwork(s.Network)
}

// validName follows libpod's rule for container names.
func validName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != ""
}

// checkNetwork refuses the modes of podman run --network that are not networks:
// a replica needs an address of its own.
func checkNetwork(name string) error {
	mode, _, options := strings.Cut(name, ":")
	switch mode {
	case "host", "none", "private", "slirp4netns", "pasta", "container", "ns", "bridge":
		return fmt.Errorf("%w: network %q gives replicas no address of their own: name a bridge network", ErrSpec, name)
	}
	if options {
		return fmt.Errorf("%w: network %q: options are not supported", ErrSpec, name)
	}
	return nil
}

// cpuPeriod is the length in microseconds of the slices that CPU limits are
// counted in, as podman run --cpus has it.
const cpuPeriod uint64 = 100000

// generator describes the service's Nth container to Podman.
func (s Spec) generator(index int) (*specgen.SpecGenerator, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if index < 1 {
		return nil, fmt.Errorf("%w: index %d is not positive", ErrSpec, index)
	}
	network := s.Network
	if network == "" {
		network = DefaultNetwork
	}
	g := specgen.NewSpecGenerator(s.Image, false)
	g.Name = Name(s.Service, index)
	g.Command = slices.Clone(s.Command)
	g.Env = maps.Clone(s.Env)
	g.Labels = map[string]string{
		LabelService: s.Service,
		LabelIndex:   strconv.Itoa(index),
		LabelPort:    strconv.Itoa(int(s.Port)),
		LabelSpec:    s.Hash(),
	}
	g.NetNS = specgen.Namespace{NSMode: specgen.Bridge}
	g.Networks = map[string]nettypes.PerNetworkOptions{network: {}}
	g.RestartPolicy = "no" // whoever may restart a replica decides whether to

	// An interval of 0 keeps Podman from making a systemd timer per replica.
	// NONE silences the image's own health check, for the same reason.
	g.HealthConfig = &manifest.Schema2HealthConfig{Test: []string{"NONE"}}
	if len(s.Health) > 0 {
		g.HealthConfig = &manifest.Schema2HealthConfig{
			Test:    append([]string{"CMD"}, s.Health...),
			Timeout: probeLimit,
			Retries: 1,
		}
	}
	if s.StopTimeout > 0 {
		seconds := wholeSeconds(s.StopTimeout)
		g.StopTimeout = &seconds
	}
	if s.Memory > 0 || s.CPUs > 0 {
		g.ResourceLimits = new(runtime.LinuxResources)
	}
	if s.Memory > 0 {
		g.ResourceLimits.Memory = &runtime.LinuxMemory{Limit: &s.Memory}
	}
	if s.CPUs > 0 {
		quota, period := int64(math.Round(s.CPUs*float64(cpuPeriod))), cpuPeriod
		g.ResourceLimits.CPU = &runtime.LinuxCPU{Quota: &quota, Period: &period}
	}
	return g, s.volumes(g)
}

// volumes adds the volumes to g, in the order of their destinations.
func (s Spec) volumes(g *specgen.SpecGenerator) error {
	for _, v := range s.Volumes {
		if strings.HasPrefix(v, ".") { // podman run would look in its working directory
			return fmt.Errorf("%w: volume %q: path is not absolute", ErrSpec, v)
		}
	}
	binds, named, overlays, err := specgen.GenVolumeMounts(s.Volumes)
	if err != nil {
		return fmt.Errorf("%w: volumes: %s", ErrSpec, oneLine(err.Error()))
	}
	for _, dest := range slices.Sorted(maps.Keys(binds)) {
		g.Mounts = append(g.Mounts, binds[dest])
	}
	for _, dest := range slices.Sorted(maps.Keys(named)) {
		g.Volumes = append(g.Volumes, named[dest])
	}
	for _, dest := range slices.Sorted(maps.Keys(overlays)) {
		g.OverlayVolumes = append(g.OverlayVolumes, overlays[dest])
	}
	return nil
}

// wholeSeconds rounds up, for interfaces that count in seconds: the fraction of
// a second that a user asked for is a second, never an instant kill.
func wholeSeconds(d time.Duration) uint {
	if d <= 0 {
		return 0
	}
	return uint((d + time.Second - 1) / time.Second)
}
