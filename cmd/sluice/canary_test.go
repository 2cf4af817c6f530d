package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// canary is a section whose replicas differ by an environment variable, of
// which more is appended.
func canary(percent int, env string) string {
	return fmt.Sprintf("[service.web.canary]\npercent = %d\n[service.web.canary.container]\nenv = { KIND = \"canary\"%s }\n", percent, env)
}

// roles tells the backends' names by who is a canary.
func roles(st control.ServiceStatus) map[string]bool {
	m := map[string]bool{}
	for _, b := range st.Backends {
		m[b.Name] = b.Canary
	}
	return m
}

// both waits for a stable replica and a canary, and for nothing else.
func (d *proc) both(t *testing.T) map[string]bool {
	t.Helper()
	st := d.until(t, "a stable replica and a canary", func(st control.ServiceStatus) bool {
		canaries := 0
		for _, b := range st.Backends {
			if b.Canary && b.Weight > 0 {
				canaries++
			}
		}
		return len(st.Backends) == 2 && st.Ready == 2 && st.Desired == 2 && canaries == 1
	})
	return roles(st)
}

// share asks n times over new connections and returns how often a canary
// answered.
func (h *host) share(t *testing.T, canary map[string]bool, n int) (canaries int) {
	t.Helper()
	called := map[string]string{} // the test image goes by the container's ID
	for line := range strings.Lines(h.pod.CLI(t, "ps", "--format", "{{.ID}} {{.Names}}")) {
		if f := strings.Fields(line); len(f) == 2 {
			called[f[0]] = f[1]
		}
	}
	for range n {
		name := called[testenv.WhoAnswered(t, h.Client, address+":80").Name]
		is, known := canary[name]
		if !known {
			t.Errorf("%q answered, the backends are %v", name, canary)
		}
		if is {
			canaries++
		}
	}
	return canaries
}

// holdOn opens connections until one is to a canary and one is not, by the
// counts of the status, and returns both.
func (h *host) holdOn(t *testing.T, d *proc) (stable, canary net.Conn) {
	t.Helper()
	open := func(n int) (canaries int) {
		testenv.Eventually(t, patient, func() (bool, string) {
			total := 0
			canaries = 0
			for _, b := range d.status(t).Backends {
				total += b.Flows
				if b.Canary {
					canaries += b.Flows
				}
			}
			return total == n, fmt.Sprintf("%d flows, %d are open", total, n)
		})
		return canaries
	}
	for n := 0; stable == nil || canary == nil; {
		was := open(n)
		conn := h.hold(t)
		is := open(n + 1)
		switch {
		case is > was && canary == nil:
			canary = conn
			n++
		case is == was && stable == nil:
			stable = conn
			n++
		default:
			_ = conn.Close()
		}
	}
	return stable, canary
}

// alive demands that a held connection still gets bytes.
func alive(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 16)); err != nil {
		t.Errorf("%s was harmed: %v", what, err)
	}
}

// TestCanaryShare: new flows divide by percent; a new percent moves new flows
// only; asleep nothing is left.
func TestCanaryShare(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "5m"`, "", "")+canary(20, "")))
	h.get(t, "/who") // from zero: the first is for a stable one
	d.wait(t, event("warm"))
	who := d.both(t)
	if n := h.share(t, who, 100); n != 20 {
		t.Errorf("%d of 100 new flows reached the canary, want 20", n)
	}
	st := d.status(t)
	if st.Canary == nil || st.Canary.Percent != 20 || st.Canary.Verdict != "" {
		t.Errorf("status: %+v", st.Canary)
	}
	if out := h.must(t, "status"); !strings.Contains(out, "ready (canary)") || !strings.Contains(out, "canary gets 20 % of new flows") {
		t.Errorf("the table does not tell of the canary:\n%s", out)
	}

	stable, trial := h.holdOn(t, d)
	h.configure(t, web(`idle = "5m"`, "", "")+canary(75, ""))
	h.must(t, "reload")
	h.eventually(t, d, 100, 75, 75)
	if now := d.both(t); fmt.Sprint(now) != fmt.Sprint(who) {
		t.Errorf("another percent has changed the replicas: %v, were %v", now, who)
	}
	alive(t, "a flow on the stable replica", stable)
	alive(t, "a flow on the canary", trial)
	if err := stable.Close(); err != nil {
		t.Error(err)
	}
	if err := trial.Close(); err != nil {
		t.Error(err)
	}

	h.configure(t, strings.Replace(web(`idle = "5m"`, "", ""), "[service.web.container]", "balance = \"maglev\"\n[service.web.container]", 1)+canary(20, ""))
	h.must(t, "reload")
	h.eventually(t, d, 400, 50, 110) // 80 is the mean; 30 off is beyond three and a half sigma
	h.configure(t, web(`idle = "1s"`, "", "")+canary(20, ""))
	h.must(t, "reload")
	d.until(t, "sleep", asleep)
}

// eventually demands that of so many new flows no less and no more reach the
// canary, as soon as the slots that were asked for are in the kernel.
func (h *host) eventually(t *testing.T, d *proc, flows, least, most int) {
	t.Helper()
	who := d.both(t)
	testenv.Eventually(t, patient, func() (bool, string) {
		n := h.share(t, who, flows)
		return n >= least && n <= most, fmt.Sprintf("%d of %d new flows reached the canary, want %d to %d", n, flows, least, most)
	})
}

// TestCanaryPromote: promoted, the canary's replica stays as it is, the other is
// replaced, and no flow is cut; a restart keeps the verdict; and when the
// configuration says the same nothing is started anew.
func TestCanaryPromote(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	config := h.configure(t, web("min = 2\nidle = \"5m\"", "", "")+canary(50, ""))
	d := h.start(t, config)
	d.until(t, "both", func(st control.ServiceStatus) bool { return st.Ready == st.Desired && st.Ready >= 2 })
	stable, trial := h.holdOn(t, d)
	h.must(t, "canary", "promote", "web")
	for name, is := range roles(d.status(t)) {
		if is {
			t.Errorf("%s is still a canary", name)
		}
	}
	l := d.wait(t, event("canary-promoted"))
	if !strings.Contains(l.field("message"), "[service.web.container]") {
		t.Errorf("nobody is told what to do: %s", l.text)
	}
	promoted := func(st control.ServiceStatus) bool {
		return st.Ready == 2 && st.Canary != nil && st.Canary.Verdict == "promoted"
	}
	d.until(t, "two replicas like the canary", func(st control.ServiceStatus) bool {
		n := 0
		for _, b := range st.Backends {
			if b.State == "draining" {
				n++
			}
		}
		return promoted(st) && n > 0
	})
	canaries := func(what string) {
		t.Helper()
		for range 10 {
			if env := h.get(t, "/env"); !strings.Contains(env, `"KIND":"canary"`) {
				t.Errorf("%s: a new flow reached what is not like the canary: %s", what, env)
			}
		}
	}
	canaries("promoted")
	alive(t, "the flow on the former replica", stable)
	alive(t, "the flow on the canary", trial)

	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		d.signal(t, sig)
		d.end(t)
		d = h.start(t, config)
		d.until(t, "two replicas after "+sig.String(), promoted)
		canaries(sig.String())
	}
	h.must(t, "reload")
	d.until(t, "two replicas after a reload", promoted)
	alive(t, "the flow on the former replica", stable)
	if err := stable.Close(); err != nil {
		t.Error(err)
	}
	d.until(t, "two replicas alone", func(st control.ServiceStatus) bool { return len(st.Backends) == 2 && promoted(st) })

	list := func() string { return h.pod.CLI(t, "ps", "--all", "--format", "{{.ID}} {{.StartedAt}}") }
	before := list()
	h.configure(t, web("min = 2\nidle = \"5m\"", `KIND = "canary"`, ""))
	h.must(t, "reload")
	if st := d.status(t); st.Canary != nil || st.Ready != 2 || len(st.Backends) != 2 {
		t.Errorf("after the configuration says it: %+v", st)
	}
	h.get(t, "/who")
	if got := list(); got != before {
		t.Errorf("containers have changed:\n%s\nbefore:\n%s", got, before)
	}
	alive(t, "the flow on the canary", trial)
	testenv.Eventually(t, patient, func() (bool, string) {
		text, err := os.ReadFile(filepath.Join(h.state(), "canaries.json"))
		return err == nil && !strings.Contains(string(text), "web"), fmt.Sprintf("the verdict is kept: %s %v", text, err)
	})
}

// TestCanaryAbort: aborted, a canary gets no new flow, keeps those it has until
// they end, and is gone then; resume brings it back, and another canary begins
// without a verdict.
func TestCanaryAbort(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	config := h.configure(t, web("min = 1\nidle = \"5m\"", "", "")+canary(50, ""))
	d := h.start(t, config)
	who := d.both(t)
	stable, trial := h.holdOn(t, d)
	h.must(t, "canary", "abort", "web")
	d.wait(t, event("canary-aborted"))
	d.until(t, "drain of the canary", func(st control.ServiceStatus) bool {
		for _, b := range st.Backends {
			if b.Canary && b.State != "draining" {
				return false
			}
		}
		return len(st.Backends) == 2 && st.Canary.Verdict == "aborted"
	})
	if n := h.share(t, who, 20); n > 1 { // the table may be one transaction behind
		t.Errorf("%d of 20 new flows reached an aborted canary", n)
	}
	alive(t, "the flow on the canary", trial)
	d.signal(t, syscall.SIGKILL)
	d.end(t)
	d = h.start(t, config)
	d.until(t, "the verdict after a restart", func(st control.ServiceStatus) bool {
		return st.Canary.Verdict == "aborted" && st.Ready == 1
	})
	alive(t, "the flow on the canary", trial)
	if n := h.share(t, who, 20); n != 0 {
		t.Errorf("%d of 20 new flows reached an aborted canary after a restart", n)
	}
	if err := trial.Close(); err != nil {
		t.Error(err)
	}
	d.until(t, "the end of the canary", func(st control.ServiceStatus) bool { return len(st.Backends) == 1 && !st.Backends[0].Canary })
	alive(t, "the flow on the stable replica", stable)

	h.must(t, "canary", "resume", "web")
	d.both(t)
	h.must(t, "canary", "abort", "web")
	d.until(t, "the end of the canary", func(st control.ServiceStatus) bool { return len(st.Backends) == 1 })
	h.configure(t, web("min = 1\nidle = \"5m\"", "", "")+canary(50, `, NEW = "1"`))
	h.must(t, "reload")
	d.both(t)
	if st := d.status(t); st.Canary.Verdict != "" {
		t.Errorf("another canary has the verdict of the one before: %+v", st.Canary)
	}
	for _, wrong := range [][]string{{"canary", "promote", "nobody"}, {"canary", "abort"}, {"canary"}, {"canary", "fly", "web"}} {
		if _, errOut, code := h.sluice(t, wrong...); code == 0 || strings.Count(errOut, "\n") != 1 {
			t.Errorf("sluice %v: exit %d: %q", wrong, code, errOut)
		}
	}
	h.configure(t, web("min = 1\nidle = \"5m\"", "", ""))
	h.must(t, "reload")
	if _, errOut, code := h.sluice(t, "canary", "abort", "web"); code != 1 || !strings.Contains(errOut, "[service.web.canary]") {
		t.Errorf("abort without a canary: exit %d: %q", code, errOut)
	}
	d.until(t, "the stable replica alone", func(st control.ServiceStatus) bool { return len(st.Backends) == 1 && st.Ready == 1 })
	alive(t, "the flow on the stable replica", stable)
}

// TestCanaryBroken: a canary that cannot start takes nothing from its service
// and is told of; a bad state file is too, and harms nobody.
func TestCanaryBroken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if err := os.MkdirAll(h.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.state(), "canaries.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := h.start(t, h.configure(t, web(`idle = "1s"`, "", "")+
		"[service.web.canary]\npercent = 50\n[service.web.canary.container]\nimage = \"localhost/none:1\"\n"))
	d.wait(t, func(l line) bool {
		return l.field("level") == "warn" && strings.Contains(l.field("error"), "canaries.json")
	})
	for range 2 {
		who := map[string]bool{}
		for range 10 {
			who[testenv.WhoAnswered(t, h.Client, address+":80").Name] = true
		}
		if len(who) != 1 {
			t.Errorf("%v answered, want the stable replica alone", who)
		}
		d.until(t, "the canary's error", func(st control.ServiceStatus) bool {
			return st.Phase == "warm" && strings.Contains(st.Canary.Error, "localhost/none:1") && strings.HasPrefix(st.LastError, "canary: ")
		})
		d.until(t, "sleep", asleep)
	}
	for _, l := range d.log.Since(0) {
		if event("failed")(l) {
			t.Errorf("the service has failed: %s", l.text)
		}
	}
}
