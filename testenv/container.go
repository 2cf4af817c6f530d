package testenv

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ContainerNS is the network namespace of a running container, from which
// connections are then the container's own. Nothing is closed or killed in it
// when t ends but this handle.
func (p *Podman) ContainerNS(t TB, name string) *NS {
	t.Helper()
	ns, err := p.containerNS(strings.TrimSpace(p.CLI(t, "inspect", "--format", "{{.State.Pid}}", name)))
	if err != nil {
		t.Fatalf("enter container %s: %v", name, err)
	}
	ns.Name = name
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Errorf("close namespace of container %s: %v", name, err)
		}
	})
	return ns
}

func (p *Podman) containerNS(pid string) (*NS, error) {
	if n, err := strconv.Atoi(pid); err != nil || n <= 0 {
		return nil, fmt.Errorf("it has no process: %q", pid)
	}
	f, err := os.Open("/proc/" + pid + "/ns/net")
	if err != nil {
		return nil, err
	}
	n, err := inode(f)
	if err == nil && n == p.host.Inode() {
		err = fmt.Errorf("it has no namespace of its own: %w", ErrOrigin)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &NS{file: f, inode: n}, nil
}
