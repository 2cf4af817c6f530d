package health

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// TestHeader: a backend that demands a PROXY header gets it with each HTTP
// request, and without it is unhealthy.
func TestHeader(t *testing.T) {
	t.Parallel()
	for version := byte(1); version <= 2; version++ {
		header, err := proxyproto.HeaderProxyFromAddrs(version, nil, nil).Format()
		if err != nil {
			t.Fatal(err)
		}
		at := addr()
		seen := make(chan string, 16)
		demand := &proxyproto.Listener{
			Listener: listen(t, at, 128),
			ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
				return proxyproto.REQUIRE, nil
			},
			ReadHeaderTimeout: patient,
		}
		s := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.RemoteAddr })}
		t.Cleanup(func() { _ = s.Close() })
		go func() { _ = s.Serve(demand) }()

		with := check(HTTP)
		with.Header = header
		start(t, with, Target{Addr: at}).healthy(t)
		if got := <-seen; !strings.HasPrefix(got, "127.") {
			t.Errorf("version %d: the check came from %s, want its own address", version, got)
		}
		res := start(t, check(HTTP), Target{Addr: at}).onTime(t)
		if res.Healthy {
			t.Errorf("version %d: healthy without the header", version)
		}
	}
}

// TestUnseen: a TCP check is over before the application could ask for anything.
func TestUnseen(t *testing.T) {
	t.Parallel()
	at := addr()
	l := listen(t, at, 128).(*net.TCPListener)
	p := &Prober{check: check(TCP), target: Target{Addr: at}}
	const tries = 50
	for range tries {
		if err := p.attempt(t.Context(), patient); err != nil {
			t.Fatal(err)
		}
	}
	last, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if err := l.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	// The kernel sends the handshake's end by itself after 200 ms, which a busy
	// machine may need now and then.
	for seen := 0; ; seen++ {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(fmt.Errorf("%w after %d", err, seen))
		}
		_ = c.Close()
		if c.RemoteAddr().String() == last.LocalAddr().String() {
			if seen > tries/10 {
				t.Errorf("%d of %d checks were accepted", seen, tries)
			}
			return
		}
	}
}
