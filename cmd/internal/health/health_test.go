package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// patient is how long a test waits for what must happen.
const patient = 30 * time.Second

// run tries a backend in a pool of its own until ctx is done.
func run(ctx context.Context, c Check, t Target, post func(Result)) {
	p := NewPool()
	defer p.Close()
	if b := p.Probe(c, t, post); b != nil {
		<-ctx.Done()
		b.Stop()
	}
}

// running is a run in the background.
type running struct {
	results chan Result
	cancel  context.CancelFunc
	done    chan struct{}
	late    []Result // posted after the cancel; to be read after done
}

func start(t *testing.T, c Check, target Target) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{results: make(chan Result, 1024), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		run(ctx, c, target, func(res Result) {
			if ctx.Err() != nil {
				r.late = append(r.late, res)
				return
			}
			r.results <- res
		})
	}()
	t.Cleanup(func() { r.stop(t) })
	return r
}

// stop ends run and waits for its return.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case <-r.done:
	case <-time.After(patient):
		t.Fatal("run does not return after its context is done")
	}
}

// onTime returns the next result that is not an attempt given up early, which
// a busy machine may add at any time.
func (r *running) onTime(t *testing.T) Result {
	t.Helper()
	for {
		if res := r.next(t); !errors.Is(res.Err, os.ErrDeadlineExceeded) {
			return res
		}
	}
}

// next returns the next result.
func (r *running) next(t *testing.T) Result {
	t.Helper()
	select {
	case res := <-r.results:
		if res.Healthy != (res.Err == nil) {
			t.Fatalf("result %+v contradicts itself", res)
		}
		return res
	case <-time.After(patient):
		t.Fatal("no result")
		panic("unreachable")
	}
}

func (r *running) healthy(t *testing.T) {
	t.Helper()
	if res := r.onTime(t); !res.Healthy {
		t.Fatalf("result %v, want healthy", res.Err)
	}
}

func (r *running) unhealthy(t *testing.T, text string) error {
	t.Helper()
	res := r.onTime(t)
	if res.Healthy || res.Err.Error() != text {
		t.Fatalf("result %+v, want %q", res, text)
	}
	return res.Err
}

// addr returns a loopback address of the test's own, at which nothing listens.
func addr() netip.AddrPort {
	n := rand.Uint32()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(n>>16)%250 + 2, byte(n >> 8), byte(n)%250 + 2}), 20000)
}

// listen opens a listening socket whose accept queue holds backlog+1.
func listen(t *testing.T, at netip.AddrPort, backlog int) net.Listener {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}),
		unix.Listen(fd, backlog),
	); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func serve(t *testing.T, h http.Handler) netip.AddrPort {
	t.Helper()
	at := addr()
	s := &http.Server{Handler: h}
	l := listen(t, at, 128)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return at
}

func check(typ Type) Check {
	return Check{Type: typ, Path: "/", Interval: 5 * time.Millisecond, Timeout: 10 * time.Second, Rise: 1, Fall: 1}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	at := addr()
	r := start(t, check(TCP), Target{Addr: at})
	err := r.unhealthy(t, fmt.Sprintf("dial tcp %s: connection refused", at))
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v is not ECONNREFUSED", err)
	}
	for range 3 {
		l := listen(t, at, 128)
		r.healthy(t)
		_ = l.Close()
		r.unhealthy(t, fmt.Sprintf("dial tcp %s: connection refused", at))
	}
}

// A SYN that is lost must not cost the second until the kernel repeats it.
func TestLostSYN(t *testing.T) {
	t.Parallel()
	at := addr()
	l := listen(t, at, 0)
	// Fill the accept queue: from here the kernel drops each SYN.
	full, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	check := check(TCP)
	check.Timeout = time.Hour
	r := start(t, check, Target{Addr: at})
	res := r.next(t)
	if text := fmt.Sprintf("dial tcp %s: i/o timeout", at); res.Healthy || res.Err.Error() != text {
		t.Fatalf("result %+v, want %q", res, text)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r.healthy(t)
}

func TestPatience(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ elapsed, timeout, want time.Duration }{
		{0, time.Second, 20 * time.Millisecond},
		{400 * time.Millisecond, time.Second, 100 * time.Millisecond},
		{time.Minute, time.Second, time.Second},
		{0, 5 * time.Millisecond, 5 * time.Millisecond},
	} {
		if got := patience(test.elapsed, test.timeout); got != test.want {
			t.Errorf("patience(%v, %v) = %v, want %v", test.elapsed, test.timeout, got, test.want)
		}
	}
}

// Attempts leave no port in TIME_WAIT behind.
func TestNoTimeWait(t *testing.T) {
	t.Parallel()
	for _, typ := range []Type{TCP, HTTP} {
		var n atomic.Int32
		at := addr()
		l := listen(t, at, 128)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				n.Add(1)
				go func() {
					// Answer, and leave it to the client to close first:
					// who closes first keeps the TIME_WAIT.
					_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}()
			}
		}()
		p := &Prober{check: check(typ), target: Target{Addr: at}}
		for range 20 {
			if err := p.attempt(t.Context(), patient); err != nil {
				t.Fatal(err)
			}
		}
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		a := at.Addr().As4()
		remote := fmt.Sprintf("%02X%02X%02X%02X:%04X", a[3], a[2], a[1], a[0], at.Port())
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			if len(f) > 3 && f[2] == remote && f[3] == "06" {
				t.Errorf("%s: a port in TIME_WAIT: %s", typ, line)
			}
		}
	}
}

// script answers requests with one status after the other, the last for ever.
type script struct {
	status []int
	n      atomic.Int32 // requests so far
}

func (s *script) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	i := int(s.n.Add(1)) - 1
	w.WriteHeader(s.status[min(i, len(s.status)-1)])
}

func TestRiseFall(t *testing.T) {
	t.Parallel()
	s := &script{status: []int{
		503, 200, // up by the first success, whatever rise says
		500, 500, 200, 500, 500, 500, // the third in a row
		200, 200, 404, 200, 200, 200, // the third in a row
		500, 500, 502, // and down again
	}}
	at := serve(t, s)
	c := check(HTTP)
	c.Rise, c.Fall = 3, 3

	type news struct {
		after int32
		text  string
	}
	var got []news
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	run(ctx, c, Target{Addr: at}, func(r Result) {
		text := "healthy"
		if !r.Healthy {
			text = r.Err.Error()
		}
		got = append(got, news{s.n.Load(), text})
		if text == "HTTP 502" {
			cancel()
		}
	})
	// Words that change while unhealthy (the 404) may be news or come too
	// quickly to be, and a busy machine may give up an attempt to connect.
	got = slices.DeleteFunc(got, func(n news) bool { return n.text == "HTTP 404" || strings.HasSuffix(n.text, "timeout") })
	want := []news{{1, "HTTP 503"}, {2, "healthy"}, {8, "HTTP 500"}, {14, "healthy"}, {17, "HTTP 502"}}
	if !slices.Equal(got, want) {
		t.Errorf("posted %v, want %v", got, want)
	}
}

func TestAdopted(t *testing.T) {
	t.Parallel()
	s := &script{status: []int{200, 200, 200, 200, 500}}
	at := serve(t, s)
	r := start(t, check(HTTP), Target{Addr: at, Healthy: true})
	r.unhealthy(t, "HTTP 500")
	if n := s.n.Load(); n < 5 {
		t.Errorf("unhealthy after %d requests, of which the first 4 are answered with 200", n)
	}
}

func TestNone(t *testing.T) {
	t.Parallel()
	for _, adopted := range []bool{false, true} {
		var got []Result
		run(t.Context(), Check{Type: None}, Target{Healthy: adopted}, func(r Result) { got = append(got, r) })
		want := []Result{{Healthy: true}}
		if adopted {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("adopted %v: posted %v, want %v", adopted, got, want)
		}
	}
}

func TestHTTPRequest(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var got []string
	clients := map[string]bool{}
	at := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Method+" "+r.Host+" "+r.RequestURI)
		clients[r.RemoteAddr] = true
	}))
	p := &Prober{check: check(HTTP), target: Target{Addr: at}}
	p.check.Path = "/ready?deep=1"
	p2 := &Prober{check: p.check, target: p.target}
	p2.check.Host = "example.org"
	for _, p := range []*Prober{p, p2} {
		if err := p.attempt(t.Context(), patient); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{"GET " + at.String() + " /ready?deep=1", "GET example.org /ready?deep=1"}
	if !slices.Equal(got, want) || len(clients) != 2 {
		t.Errorf("got %q from %v, want %q from two connections", got, clients, want)
	}
}

func TestHTTPAnswers(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 4<<20)
	tests := map[string]struct {
		answer string
		hang   bool // keep the connection open afterwards
		want   string
	}{
		"ok":             {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true, ""},
		"version 1.0":    {"HTTP/1.0 200 OK\r\n\r\nhello", false, ""},
		"redirect":       {"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", true, ""},
		"399":            {"HTTP/1.1 399 Odd\r\n\r\n", false, ""},
		"early hints":    {"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true, ""},
		"hints then bad": {"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 No\r\n\r\n", false, "HTTP 500"},
		"upgrade":        {"HTTP/1.1 101 Switching Protocols\r\n\r\n", true, "HTTP 101"},
		"400":            {"HTTP/1.1 400 Bad Request\r\n\r\n", false, "HTTP 400"},
		"503":            {"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nhello", true, "HTTP 503"},
		"big body":       {"HTTP/1.1 200 OK\r\n\r\n" + big, false, ""},
		"endless body":   {"HTTP/1.1 200 OK\r\n\r\nhello", true, ""},
		"endless header": {"HTTP/1.1 200 OK\r\nA: " + big, true, "read tcp ADDR: answer without end"},
		"endless hints":  {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100_000), true, "read tcp ADDR: answer without end"},
		"nothing":        {"", false, "read tcp ADDR: connection closed without an answer: unexpected EOF"},
		"half":           {"HTTP/1.1 200 OK\r\nA: ", false, "read tcp ADDR: connection closed without an answer: unexpected EOF"},
		"no HTTP":        {"SSH-2.0-x\r\n", true, `read tcp ADDR: malformed HTTP response "SSH-2.0-x"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := addr()
			l := listen(t, at, 1)
			end := make(chan struct{})
			defer close(end)
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, test.answer)
				if test.hang {
					<-end
				}
			}()
			p := &Prober{check: check(HTTP), target: Target{Addr: at}}
			p.check.Timeout = time.Hour
			result := make(chan error, 1)
			go func() { result <- p.attempt(t.Context(), patient) }()
			select {
			case <-time.After(patient):
				t.Fatal("no end of it")
			case err := <-result:
				got := ""
				if err != nil {
					got = strings.ReplaceAll(err.Error(), at.String(), "ADDR")
				}
				if got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
			}
		})
	}
}

func TestHTTPHangs(t *testing.T) {
	t.Parallel()
	at := addr()
	listen(t, at, 128) // the kernel connects, and nobody answers
	c := check(HTTP)
	c.Timeout = 20 * time.Millisecond
	r := start(t, c, Target{Addr: at})
	want := fmt.Sprintf("read tcp %s: i/o timeout", at)
	for r.next(t).Err.Error() != want { // at first it may not even connect in time
	}
}

// Whatever a prober is about when it is stopped, that ends.
func TestCancel(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	end := make(chan struct{})
	silent := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-end
	}))
	defer close(end)
	lost := addr()
	listen(t, lost, 0)
	full, err := net.Dial("tcp", lost.String())
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	up := addr()
	listen(t, up, 4096)

	entered := make(chan struct{}, 1)
	hang := func(ctx context.Context, _ []string) (int, string, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return 0, "", ctx.Err()
	}
	for name, test := range map[string]struct {
		typ    Type
		target Target
	}{
		"refused":         {TCP, Target{Addr: addr()}},
		"connecting":      {TCP, Target{Addr: lost, Healthy: true}},
		"reading":         {HTTP, Target{Addr: silent}},
		"running":         {Exec, Target{Exec: hang}},
		"waiting":         {TCP, Target{Addr: up}},
		"waiting adopted": {TCP, Target{Addr: up, Healthy: true}},
	} {
		t.Run(name, func(t *testing.T) {
			c := check(test.typ)
			c.Timeout = time.Hour
			if strings.HasPrefix(name, "waiting") {
				c.Interval = time.Hour
			}
			r := start(t, c, test.target)
			switch name {
			case "refused", "waiting":
				r.next(t)
			case "running":
				await(t, entered)
			case "connecting":
				waitSocket(t, test.target.Addr)
			case "reading":
				await(t, asked)
			}
			r.stop(t)
			// An attempt may come to its own end at the very moment.
			if len(r.late) > 0 && name != "refused" {
				t.Errorf("posted %+v after the end", r.late)
			}
		})
	}
}

func await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patient):
		t.Fatal("what was waited for did not happen")
	}
}

// waitSocket returns once a socket of this machine is connecting or connected
// to at.
func waitSocket(t *testing.T, at netip.AddrPort) {
	t.Helper()
	a := at.Addr().As4()
	remote := fmt.Sprintf(" %02X%02X%02X%02X:%04X ", a[3], a[2], a[1], a[0], at.Port())
	deadline := time.Now().Add(patient)
	for time.Now().Before(deadline) {
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(table), remote) {
			return
		}
	}
	t.Fatalf("no socket to %s", at)
}

func TestExec(t *testing.T) {
	t.Parallel()
	boom := errors.New("no such container")
	answers := []struct {
		code int
		out  string
		err  error
		want string
	}{
		{1, "", nil, "exec exited 1"},
		{127, "\nsh: 1: check:\nnot found\n", nil, "exec exited 127: not found"},
		{2, strings.Repeat("x", 300), nil, "exec exited 2: " + strings.Repeat("x", 200) + "…"},
		{2, "\xff", nil, "exec exited 2: ?"},
		{0, "", boom, "exec: no such container"},
		{0, "fine", nil, ""},
	}
	for _, a := range answers {
		p := &Prober{check: check(Exec)}
		p.check.Command = []string{"check", "-v"}
		p.target.Exec = func(_ context.Context, argv []string) (int, string, error) {
			if !slices.Equal(argv, p.check.Command) {
				t.Errorf("argv %q", argv)
			}
			return a.code, a.out, a.err
		}
		got := ""
		err := p.attempt(t.Context(), 0)
		if err != nil {
			got = err.Error()
		}
		if got != a.want {
			t.Errorf("got %q, want %q", got, a.want)
		}
		if a.err != nil && !errors.Is(err, a.err) {
			t.Errorf("%v does not wrap %v", err, a.err)
		}
	}
}

func TestExecTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := check(Exec)
		c.Timeout = 3 * time.Second
		p := &Prober{check: c}
		p.target.Exec = func(ctx context.Context, _ []string) (int, string, error) {
			<-ctx.Done()
			return -1, "", ctx.Err()
		}
		if err := p.attempt(t.Context(), 0); err == nil || err.Error() != "exec timed out after 3s" {
			t.Errorf("got %v", err)
		}
	})
}

// Within a bubble time stands still while anything runs, so these are exact.

func TestEagerPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		begin := time.Now()
		var at []time.Duration
		var results []Result
		run(ctx, check(Exec), Target{Exec: func(context.Context, []string) (int, string, error) {
			at = append(at, time.Since(begin))
			return 1, "", nil
		}}, func(r Result) { results = append(results, r) })
		if at[0] != 0 || at[1] != time.Millisecond {
			t.Errorf("first attempts at %v", at[:2])
		}
		for i := range at[1:] {
			gap := at[i+1] - at[i]
			if gap < time.Millisecond || gap > 50*time.Millisecond || gap > max(at[i]/32, time.Millisecond) {
				t.Errorf("attempts at %v and %v", at[i], at[i+1])
			}
		}
		if len(at) > 800 {
			t.Errorf("%d attempts in 30s", len(at))
		}
		if len(results) != 1 {
			t.Errorf("%d results for one unchanged failure", len(results))
		}
	})
}

// A slow command on the way up does not take more than half of the time.
func TestEagerSlowCommand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var busy time.Duration
		run(ctx, check(Exec), Target{Exec: func(context.Context, []string) (int, string, error) {
			time.Sleep(400 * time.Millisecond)
			busy += 400 * time.Millisecond
			return 1, "", nil
		}}, func(Result) {})
		if busy < 14*time.Second || busy > 16*time.Second {
			t.Errorf("busy for %v of 30s", busy)
		}
	})
}

// Words that change all the time are not posted all the time.
func TestChangingWords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		n := 0
		var said []time.Time
		run(ctx, check(Exec), Target{Exec: func(context.Context, []string) (int, string, error) {
			n++
			return 1, fmt.Sprint(n), nil
		}}, func(Result) { said = append(said, time.Now()) })
		if len(said) < 100 {
			t.Errorf("%d results in 30s", len(said))
		}
		for i := range said[1:] {
			if gap := said[i+1].Sub(said[i]); gap < sayEvery {
				t.Errorf("two results within %v", gap)
			}
		}
	})
}

// Thousands that are adopted at one moment spread over the interval, and stay
// spread.
func TestSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const backends, interval = 1000, 2 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		begin := time.Now()
		var mu sync.Mutex
		perTenth := map[int]int{}
		total := 0
		c := check(Exec)
		c.Interval = interval
		var wg sync.WaitGroup
		for range backends {
			wg.Go(func() {
				run(ctx, c, Target{Healthy: true, Exec: func(context.Context, []string) (int, string, error) {
					mu.Lock()
					defer mu.Unlock()
					perTenth[int(time.Since(begin)/(interval/10))]++
					total++
					return 0, "", nil
				}}, func(r Result) { t.Errorf("posted %+v", r) })
			})
		}
		wg.Wait()
		for i := range 500 {
			if n := perTenth[i]; n < backends/20 || n > backends/5 {
				t.Errorf("tenth %d of an interval: %d attempts, want about %d", i, n, backends/10)
			}
		}
		if want := backends * 50; total < want*95/100 || total > want*105/100 {
			t.Errorf("%d attempts in 50 intervals, want about %d", total, want)
		}
	})
}

// streak holds for every order of attempts: it is healthy after rise
// successes, unhealthy after fall failures, and else what it was.
func FuzzStreak(f *testing.F) {
	f.Add(uint8(2), uint8(3), []byte{0, 0, 1, 0, 0, 0, 1, 1})
	f.Fuzz(func(t *testing.T, rise, fall uint8, attempts []byte) {
		s := streak{healthy: true, rise: int(rise%5) + 1, fall: int(fall%5) + 1}
		var run int // length of the latest run of equal attempts
		for i, a := range attempts {
			ok := a&1 == 1
			if i > 0 && ok == (attempts[i-1]&1 == 1) {
				run++
			} else {
				run = 1
			}
			was := s.healthy
			changed := s.add(ok)
			want := was
			if ok && run >= s.rise || !ok && run >= s.fall {
				want = ok
			}
			if s.healthy != want || changed != (want != was) {
				t.Fatalf("after %v: healthy %v, want %v", attempts[:i+1], s.healthy, want)
			}
		}
	})
}

// The memory that a parked prober holds.
func BenchmarkParked(b *testing.B) {
	at := addr()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var seen atomic.Int32 // attempts that the application got to see
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			seen.Add(1)
			_ = c.Close()
		}
	}()
	p := NewPool()
	defer p.Close()
	c := Check{Type: TCP, Interval: time.Hour, Timeout: time.Second, Rise: 1, Fall: 1}
	up := make(chan struct{}, 64)
	before := footprint()
	n := 0
	for b.Loop() {
		p.Probe(c, Target{Addr: at}, func(r Result) {
			if r.Healthy { // on a busy machine an attempt may be given up before
				up <- struct{}{}
			}
		})
		<-up
		n++
	}
	b.ReportMetric(float64(seen.Load())/float64(n), "accepted/prober")
	b.ReportMetric(float64(footprint()-before)/float64(n), "B/prober")
}
