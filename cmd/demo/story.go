package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

const (
	service = "web"
	vip     = "192.0.2.10"
	addr    = vip + ":80"
)

// services is the configuration of the service, with windows so short that all
// of its life fits into half a minute.
func services(sleep string) string {
	return fmt.Sprintf(`[service.%[1]s]
listen = ["%[2]s/tcp"]

[service.%[1]s.container]
image = "%[3]s"
port  = 8080
pull  = "never"
stop_timeout = "2s"

[service.%[1]s.scale]
max = 4
flows_per_replica = 10
stable_window = "2s"
panic_window  = "1s"
idle  = "2s"
sleep = "%[4]s"
`, service, addr, testenv.Image, sleep)
}

// story is what the parts of the demo share.
type story struct {
	*page
	ctx    context.Context
	t      testenv.TB
	s      *sandbox.Sandbox
	daemon *sandbox.Daemon
}

// tell runs the demo from its beginning to its end.
func tell(ctx context.Context, t testenv.TB, program string, w io.Writer) {
	p := &page{w: w, begin: time.Now()}
	p.say("Setting up: network namespaces, a Podman of their own, an image ...")
	d := &story{page: p, ctx: ctx, t: t, s: sandbox.New(t, program, vip)}
	p.say("client %s  ---  host %s, service address %s  ---  containers", d.s.ClientAddr4, d.s.HostAddr4, addr)
	d.s.Configure(t, services("stop"))
	d.daemon = d.s.Start(ctx, t)

	d.asleep()
	d.cold()
	d.direct()
	d.crash()
	d.busy()
	d.quiet()
	d.burst()
	d.prepared()
	p.head("Done. Nothing is left on this machine.")
}

func (d *story) asleep() {
	d.head("A service that sleeps costs nothing")
	if n := len(d.s.Containers(d.t)); n != 0 {
		d.t.Fatalf("%d containers before the first connection, want none", n)
	}
	d.say("Podman has no container. The daemon listens on the address and waits.")
	d.quote(d.s.Sluice(d.ctx, d.t, "status"))
}

// cold shows the first connection to a sleeping service.
func (d *story) cold() {
	d.head("The first connection wakes it")
	d.wake()
}

// wake calls a sleeping service and prints what happened when.
func (d *story) wake() {
	before, mark := d.s.Steps(d.ctx, d.t), d.daemon.Mark()
	was := d.s.Status(d.ctx, d.t, service)
	call := d.call()
	warm := d.daemon.Wait(d.t, mark, "the service is warm", sandbox.Event(service, "warm"))
	step := map[string]time.Duration{}
	for name, sum := range d.s.Steps(d.ctx, d.t) {
		step[name] = time.Duration((sum - before[name]) * float64(time.Second))
	}
	for _, name := range []string{"start", "ready", "map"} {
		if step[name] <= 0 {
			d.t.Fatalf("the metrics have no time for the step %q of the cold start", name)
		}
	}
	// The daemon says when the last step ended; the clock is the same.
	mapped := warm.Time.Sub(call.SYN)
	ready := mapped - step["map"]
	started := ready - step["ready"]
	accepted := started - step["start"]

	d.timeline([]moment{
		{0, 0, "SYN", fmt.Sprintf("the client %s calls %s", call.Local, addr)},
		{call.Connected.Sub(call.SYN), 0, "SYN-ACK", "handshake complete: the kernel has answered for the sleeping service"},
		{accepted, step["accept"], "accept", "the daemon holds the connection"},
		{started, step["start"], "start", "Podman has started a container"},
		{ready, step["ready"], "ready", "its first health check has succeeded"},
		{mapped, step["map"], "map", "the kernel sends new connections to the container from here on"},
		{call.FirstByte.Sub(call.SYN), 0, "answer", "the client has the first byte"},
	})

	name := d.s.Containers(d.t)[call.Answer.Name]
	if name == "" {
		d.t.Fatalf("the answer is from %q, which is no container", call.Answer.Name)
	}
	d.say("Answered by %s (%s), which saw the client as %s.", name, call.Answer.Name, call.Answer.Remote)
	now := d.s.Status(d.ctx, d.t, service)
	switch {
	case call.Answer.Remote == call.Local && now.HandedOver > was.HandedOver:
		d.say("That is the client's own address: the held connection was handed over to the kernel.")
	case now.Relayed > was.Relayed:
		d.say("That is the host: a connection that was held is relayed by the daemon. No later one is.")
	default:
		d.t.Fatalf("the held connection was neither handed over nor relayed: %+v", now)
	}
}

func (d *story) call() sandbox.Call {
	call, err := d.s.Call(d.ctx, d.s.Client, addr)
	if err != nil {
		d.t.Fatalf("call %s: %v", addr, err)
	}
	return call
}

// direct shows that the daemon has no part in the connections that follow.
func (d *story) direct() {
	d.head("The next connections never touch the daemon")
	conn := hold(d.ctx, d.t, d.s, addr)
	defer conn.Close()
	me := conn.LocalAddr().String()
	var flow *testenv.CTFlow
	for _, f := range testenv.Conntrack(d.t, d.s.Host) {
		if f.Orig.Src.String() == me {
			flow = &f
		}
	}
	if flow == nil || flow.Reply.Dst.String() != me {
		d.t.Fatalf("conntrack does not show %s going straight to a container: %v", me, flow)
	}
	backend := d.s.Status(d.ctx, d.t, service).Backends[0].Address
	if flow.Reply.Src.String() != backend {
		d.t.Fatalf("the flow goes to %s, not to the container at %s", flow.Reply.Src, backend)
	}
	d.say("conntrack:  %s -> %s  =>  container %s", me, addr, backend)
	for _, k := range testenv.Sockets(d.t, d.s.Host, d.daemon.PID()) {
		if k.Remote.String() == me {
			d.t.Fatalf("the daemon has a socket of the flow: %s", k)
		}
	}
	d.say("daemon:     no socket of this connection (process %d)", d.daemon.PID())
	call := d.call()
	if call.Answer.Remote != call.Local {
		d.t.Fatalf("the container saw %s instead of the client %s", call.Answer.Remote, call.Local)
	}
	d.say("container:  saw the client's own address, %s; answered after %.1f ms",
		call.Answer.Remote, ms(call.FirstByte.Sub(call.SYN)))
}

// crash shows that flows do not depend on the daemon.
func (d *story) crash() {
	d.head("kill -9 of the daemon cuts nothing")
	const size, rate = 3 << 20, 2 << 20
	dl := download(d.ctx, d.s, addr, size, rate, 1)
	d.s.Until(d.ctx, d.t, service, "the flow", func(st control.ServiceStatus) bool { return st.Flows > 0 })
	d.daemon.Kill(d.t)
	call := d.call()
	d.say("Without a daemon: a new connection is answered after %.1f ms.", ms(call.FirstByte.Sub(call.SYN)))
	d.daemon = d.s.Start(d.ctx, d.t)
	d.finish(dl, "A download that ran meanwhile")
	st := d.s.Status(d.ctx, d.t, service)
	if st.Ready != 1 {
		d.t.Fatalf("the new daemon has not adopted the container: %+v", st)
	}
	d.say("The new daemon has adopted container, map and flows.")
}

// finish waits for a download to be complete and intact.
func (d *story) finish(dl *transfer, what string) {
	select {
	case <-dl.done:
	case <-d.ctx.Done():
		d.t.Fatalf("interrupted")
	}
	if dl.err != nil {
		d.t.Fatalf("download: %v", dl.err)
	}
	d.say("%s: %.1f MiB in %.1f s, every byte right.", what, float64(dl.size)/(1<<20), dl.took.Seconds())
}

const (
	flows    = 40 // ten for each of the four replicas
	replicas = 4
)

// busy shows load turning into replicas, and then load that goes away while
// each replica carries one transfer.
func (d *story) busy() {
	d.head("Load starts replicas: %d open connections, 10 for each", flows)
	begin := time.Now()
	mark := d.daemon.Mark()
	var open []net.Conn
	for range flows {
		open = append(open, hold(d.ctx, d.t, d.s, addr))
	}
	d.at(time.Since(begin), "%d connections are open", flows)
	for seen := 1; seen < replicas; seen++ {
		l := d.daemon.Wait(d.t, mark, "a replica is ready", func() func(sandbox.Line) bool {
			n := 0
			return func(l sandbox.Line) bool {
				if sandbox.Event(service, "ready")(l) {
					n++
				}
				return n == seen
			}
		}())
		d.at(l.Time.Sub(begin), "%s is ready", l.Backend)
	}
	d.s.Until(d.ctx, d.t, service, "four replicas", func(st control.ServiceStatus) bool { return st.Ready == replicas })

	names, answers := d.s.Containers(d.t), map[string]int{}
	const calls = 20
	for range calls {
		answers[names[d.call().Answer.Name]]++
	}
	var spread []string
	for i := 1; i <= replicas; i++ {
		name := fmt.Sprintf("sluice-%s-%d", service, i)
		if answers[name] == 0 {
			d.t.Fatalf("no new connection went to %s: %v", name, answers)
		}
		spread = append(spread, fmt.Sprint(answers[name]))
	}
	d.say("%d new connections are spread %s.", calls, strings.Join(spread, " - "))

	d.head("Load goes: replicas drain, but no connection is cut")
	const size, rate = 7 << 20, 1 << 20
	var dls []*transfer
	for i := range replicas {
		dls = append(dls, download(d.ctx, d.s, addr, size, rate, uint64(i+2)))
	}
	d.s.Until(d.ctx, d.t, service, "the downloads", func(st control.ServiceStatus) bool { return st.Flows >= flows+replicas })
	mark, begin = d.daemon.Mark(), time.Now()
	for _, c := range open {
		_ = c.Close()
	}
	d.at(0, "%d of %d connections are closed, %d downloads go on", flows, flows+replicas, replicas)
	first := d.daemon.Wait(d.t, mark, "a drain begins", sandbox.Event(service, "drain"))
	d.at(first.Time.Sub(begin), "%s: %s", first.Backend, first.Message)
	d.quote(d.s.Sluice(d.ctx, d.t, "status"))
	for i, dl := range dls {
		d.finish(dl, fmt.Sprintf("Download %d", i+1))
	}
	last := d.daemon.Wait(d.t, mark, "the drain ends", func(l sandbox.Line) bool {
		return l.Event == "drained" && l.Backend == first.Backend
	})
	if last.Level != "info" {
		d.t.Fatalf("the drain of %s cut connections: %s", last.Backend, last.Message)
	}
	d.at(last.Time.Sub(begin), "%s: %s, and only then stopped", last.Backend, last.Message)
}

// quiet waits for the service to fall asleep.
func (d *story) quiet() {
	d.head("Idle: back to zero containers")
	begin := time.Now()
	d.s.Until(d.ctx, d.t, service, "sleep", sandbox.Asleep)
	if left := d.s.Containers(d.t); len(left) != 0 {
		d.t.Fatalf("containers are left: %v", left)
	}
	d.at(time.Since(begin), "Podman has no container any more")
	for _, l := range d.daemon.Since(0) {
		if l.Event == "drained" && l.Level != "info" {
			d.t.Fatalf("connections were cut: %s: %s", l.Backend, l.Message)
		}
	}
	d.quote(d.s.Sluice(d.ctx, d.t, "status"))
}

// burst wakes the service by many connections at once.
func (d *story) burst() {
	const burst = 200
	d.head("%d connections at once wake it", burst)
	mark, begin := d.daemon.Mark(), time.Now()
	var g errgroup.Group
	calls := make([]sandbox.Call, burst)
	for i := range calls {
		g.Go(func() (err error) {
			calls[i], err = d.s.Call(d.ctx, d.s.Client, addr)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		d.t.Fatalf("one of %d connections at once was not answered: %v", burst, err)
	}
	took := time.Since(begin)
	warm := d.daemon.Wait(d.t, mark, "the service is warm", sandbox.Event(service, "warm"))
	held := 0
	for _, l := range d.daemon.Since(mark) {
		if l.Message == "connection held" && l.Time.Before(warm.Time) {
			held++
		}
	}
	if held != 1 {
		d.t.Fatalf("%d connections were accepted before the container was ready, want 1", held)
	}
	early := 0 // calls that met the sleeping service
	for _, c := range calls {
		if c.Connected.Before(warm.Time) {
			early++
		}
	}
	st := d.s.Until(d.ctx, d.t, service, "the held connections to be given away", func(st control.ServiceStatus) bool {
		return int(st.HandedOver+st.Relayed) >= early
	})
	d.at(warm.Time.Sub(begin), "the container is ready; %d connections wait: 1 in the daemon, the others in the kernel", early)
	d.at(took, "all %d are answered: %d handed over to the kernel, %d relayed, %d went straight",
		burst, st.HandedOver, st.Relayed, burst-int(st.HandedOver+st.Relayed))
	d.s.Until(d.ctx, d.t, service, "sleep", sandbox.Asleep)
}

// prepared shows the shallower sleep.
func (d *story) prepared() {
	d.head(`The same with sleep = "prepared"`)
	d.daemon.Stop(d.t)
	d.s.Configure(d.t, services("prepared"))
	d.daemon = d.s.Start(d.ctx, d.t)
	st := d.s.Until(d.ctx, d.t, service, "a prepared replica", func(st control.ServiceStatus) bool {
		return sandbox.Asleep(st) && len(st.Backends) == 1
	})
	d.say("%s stands ready, with network and mounts but without its program running.", st.Backends[0].Name)
	d.wake()
}
