package handover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/nft"
	"sluice/testenv"
)

const victim = "SLUICE_HANDOVER_VICTIM"

func TestMain(m *testing.M) {
	if v := os.Getenv(victim); v != "" {
		if err := runVictim(v); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runVictim hands over descriptor 3 and kills itself at a step.
func runVictim(v string) error {
	w := strings.Split(v, ",")
	table, err := nft.Open(nft.Options{})
	if err != nil {
		return err
	}
	tracker, err := conntrack.Open(0, 0)
	if err != nil {
		return err
	}
	s := &steps{Freezer: brief{table}, Tracker: tracker, at: func(at string) {
		if at == w[0] {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}}
	p, err := Open(s, s)
	if err != nil {
		return err
	}
	var r Result
	p.Handover(context.Background(), []Held{{
		FD:     3,
		Client: netip.MustParseAddrPort(w[1]), Service: netip.MustParseAddrPort(w[2]), Backend: netip.MustParseAddrPort(w[3]),
	}}, func(_ int, got Result) { r = got })
	if r.Reason != Done || r.Err != nil {
		return fmt.Errorf("result %+v", r)
	}
	// Over, with everything still open.
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// The process is killed at a step: the client is reset, or has its connection.
// It is never left waiting, and nothing stays frozen.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, step := range append(stepNames(), "at the end") {
		for _, before := range []int{0, 5000} {
			t.Run(fmt.Sprintf("%s/%d bytes", step, before), func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				l.serve(t, greet)
				h := l.hold(t, service4)
				c := dial(t, l.Client, service4)
				sent := text(before, 9)
				if _, err := c.Write(sent); err != nil {
					t.Fatal(err)
				}
				held := h.accept()
				waitBytes(t, held, before)
				l.warm(t, service4)

				f := os.NewFile(uintptr(held.FD), "held")
				cmd := l.Host.Command(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s,%s,%s,%s", victim, step, held.Client, held.Service, held.Backend))
				cmd.ExtraFiles = []*os.File{f}
				var out strings.Builder
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				f.Close()
				err := cmd.Wait()
				if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
					t.Fatalf("not killed: %v\n%s", err, out.String())
				}

				err = finish(c, c.LocalAddr(), sent, text(100000, 2))
				reset := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
				if err != nil && (!reset || step == "at the end") {
					t.Error(err)
				}
				testenv.Eventually(t, 2*freezeTimeout, func() (bool, string) {
					out := l.Host.Run(t, "nft", "list", "table", "inet", "sluice")
					i := strings.Index(out, " expires")
					return i < 0, out
				})
			})
		}
	}
}
