package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// limits says which of Podman's defaults this machine refuses.
type limits struct {
	runtime string // "crun" or "runc"
	ulimits bool   // cannot raise resource limits to Podman's defaults
	pids    bool   // no pids controller in the v2 hierarchy
}

// probe decides by what the process may do and by the controllers of the
// instance's cgroup, so that an ordinary machine runs with Podman's defaults.
func probe(controllers []string) limits {
	resource := has(unix.CAP_SYS_RESOURCE)
	l := limits{runtime: "runc", ulimits: !resource, pids: !slices.Contains(controllers, "pids")}
	// crun raises its locked memory limit for the device filter, whatever the
	// limits of the container.
	var memlock unix.Rlimit
	free := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &memlock) == nil && memlock.Max == unix.RLIM_INFINITY
	if _, err := exec.LookPath("crun"); err == nil && (resource || free) {
		l.runtime = "crun"
	}
	return l
}

func has(capability int) bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return false
	}
	return d[capability/32].Effective&(1<<(capability%32)) != 0
}

// folders makes those that the configuration names.
func (p *Podman) folders() error {
	for _, d := range []string{"graph", "run", "tmp", "net", "vol"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o700); err != nil {
			return fmt.Errorf("make podman directory: %w", err)
		}
	}
	return nil
}

// configure writes containers.conf, which replaces all of the machine's own,
// and storage.conf.
func (p *Podman) configure(l limits) error {
	for name, text := range map[string]string{
		"containers.conf": containersConf(p.dir, l),
		"storage.conf":    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", p.dir+"/graph", p.dir+"/run"),
	} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write podman configuration: %w", err)
		}
	}
	return nil
}

func containersConf(dir string, l limits) string {
	var b strings.Builder
	b.WriteString("[containers]\nlog_driver = \"k8s-file\"\n")
	if l.ulimits {
		b.WriteString("default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n")
	}
	if l.pids {
		b.WriteString("pids_limit = 0\n")
	}
	fmt.Fprintf(&b, `
[network]
network_backend = "netavark"
network_config_dir = "%[1]s/net"

[engine]
runtime = "%[2]s"
cgroup_manager = "cgroupfs"
events_logger = "file"
events_logfile_path = "%[1]s/tmp/events.log"
static_dir = "%[1]s/graph/libpod"
volume_path = "%[1]s/vol"
tmp_dir = "%[1]s/tmp"
`, dir, l.runtime)
	return b.String()
}
