package nft_test

import (
	"bufio"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"

	"golang.org/x/sys/unix"
)

// TestKeepNAT: with a Hold an established flow goes on while there is no table
// at all, and no connection is begun to it; without one it is lost. The hold
// cannot be removed by others, and goes with its owner.
func TestKeepNAT(t *testing.T) {
	t.Parallel()
	for _, held := range []bool{true, false} {
		t.Run(fmt.Sprint(held), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			at := nft.Endpoint{Addr: netip.MustParseAddr("192.0.2.10"), Proto: unix.IPPROTO_TCP, Port: 80}
			if err := l.table.Apply(map[nft.Endpoint]*nft.Service{at: l.to4(0)}); err != nil {
				t.Fatal(err)
			}
			hold := func() (h *nft.Hold) {
				if err := l.Host.Do(func() (err error) {
					h, err = nft.KeepNAT(nft.Options{})
					return err
				}); err != nil {
					t.Fatal(err)
				}
				return h
			}
			var h *nft.Hold
			if held {
				h = hold()
			}
			conn, err := l.Client.Dial(t.Context(), "tcp", "192.0.2.10:80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			if _, err := r.ReadString('\n'); err != nil { // who it is
				t.Fatal(err)
			}
			ask := func() error {
				if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
					return err
				}
				if _, err := fmt.Fprintln(conn, "hello"); err != nil {
					return err
				}
				_, err := r.ReadString('\n')
				return err
			}
			if err := ask(); err != nil {
				t.Fatal(err)
			}
			l.Host.Run(t, "nft", "flush", "ruleset")
			if rules := testenv.Ruleset(t, l.Host); strings.Contains(rules, "table inet sluice ") {
				t.Fatalf("the table was not flushed:\n%s", rules)
			}
			err = ask()
			if held != (err == nil) {
				t.Errorf("held %v, and the flow: %v", held, err)
			}
			if !held {
				return
			}
			if rules := testenv.Ruleset(t, l.Host); !strings.Contains(rules, nft.HoldPrefix) {
				t.Errorf("the hold is gone:\n%s", rules)
			}
			second := hold()
			if err := second.Close(); err != nil {
				t.Error(err)
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			if rules := testenv.Ruleset(t, l.Host); strings.Contains(rules, nft.HoldPrefix) {
				t.Errorf("the hold outlives its owner:\n%s", rules)
			}
		})
	}
}
