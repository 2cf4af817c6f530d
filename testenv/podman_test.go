package testenv

import (
	"testing"
)

func TestPodman(t *testing.T) {
	t.Parallel()
	l := NewLab(t)
	p := NewPodman(t, l.Host)
	t.Log(p.CLI(t, "run", "-d", "--name", "c1", Image))
	t.Log(p.CLI(t, "ps"))
	p.KillService(t)
	p.StartService(t)
	p.StopService(t)
	p.StartService(t)
	t.Log(p.ContainerLogs(t, "c1"))
}
