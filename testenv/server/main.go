// Command server is the program inside the test image: static, standard library
// only, its behaviour set by the environment.
//
//	NAME              what it calls itself; default the host name
//	PORT              HTTP with WebSocket at /ws; default 8080, 0 is off
//	TLS_PORT          the same over TLS, with a certificate made at start
//	WS_PORT           the same as PORT, on one more port
//	RAW_ECHO_PORT     TCP echo that keeps a half-closed connection
//	SPEAK_FIRST_PORT  TCP that greets before it reads, then echoes
//	SCRIPT_PORT       TCP that converses by a script of the client's
//	PROXY_PORT        the same as PORT, behind a PROXY header that must be there
//	UDP_PORT          UDP that answers "name remote payload"
//	DNS_PORT          a name server, UDP and TCP; see dns.go
//	DIALOGUE_PORT     UDP with connections of its own, as QUIC has; see dialogue.go
//	LISTEN_DELAY      duration before any port is opened
//	READY_DELAY       duration from start during which /healthz is 503
//	NEVER_LISTEN      any value: open no port, live on
//	EXIT_AFTER        duration from start after which it exits
//	EXIT_CODE         status for EXIT_AFTER; default 0
//	IGNORE_TERM       any value: SIGTERM has no effect; otherwise it exits 0
//
// Standard output has a line "listening" once all ports are open, and a line
// "conn PORT REMOTE" per accepted connection.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

type config struct {
	name                                                             string
	http, tls, ws, echo, greeting, script, proxy, udp, dns, dialogue string
	listenDelay, readyDelay, exitAfter                               time.Duration
	exitCode                                                         int
	neverListen, ignoreTerm                                          bool
}

func main() {
	start := time.Now()
	log.SetOutput(os.Stdout)
	log.SetFlags(0)
	cfg, err := load(os.Getenv)
	if err != nil {
		log.Fatal(err)
	}
	if cfg.ignoreTerm {
		signal.Ignore(syscall.SIGTERM)
	} else {
		// The first process of a container gets no default action for signals.
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		go func() {
			<-term
			os.Exit(0)
		}()
	}
	if cfg.exitAfter > 0 {
		time.AfterFunc(cfg.exitAfter, func() { os.Exit(cfg.exitCode) })
	}
	if cfg.neverListen {
		// A sleep, for with no timer left the runtime would call a blocked
		// main goroutine a deadlock.
		for {
			time.Sleep(time.Hour)
		}
	}
	time.Sleep(cfg.listenDelay)
	log.Fatal(serve(cfg, start))
}

func load(env func(string) string) (config, error) {
	cfg := config{
		name:        env("NAME"),
		http:        env("PORT"),
		tls:         env("TLS_PORT"),
		ws:          env("WS_PORT"),
		echo:        env("RAW_ECHO_PORT"),
		greeting:    env("SPEAK_FIRST_PORT"),
		script:      env("SCRIPT_PORT"),
		proxy:       env("PROXY_PORT"),
		udp:         env("UDP_PORT"),
		dns:         env("DNS_PORT"),
		dialogue:    env("DIALOGUE_PORT"),
		neverListen: env("NEVER_LISTEN") != "",
		ignoreTerm:  env("IGNORE_TERM") != "",
	}
	if cfg.name == "" {
		h, err := os.Hostname()
		if err != nil {
			return cfg, fmt.Errorf("read host name: %w", err)
		}
		cfg.name = h
	}
	switch cfg.http {
	case "":
		cfg.http = "8080"
	case "0":
		cfg.http = ""
	}
	for key, d := range map[string]*time.Duration{
		"LISTEN_DELAY": &cfg.listenDelay,
		"READY_DELAY":  &cfg.readyDelay,
		"EXIT_AFTER":   &cfg.exitAfter,
	} {
		if s := env(key); s != "" {
			v, err := time.ParseDuration(s)
			if err != nil {
				return cfg, fmt.Errorf("parse %s: %w", key, err)
			}
			*d = v
		}
	}
	if s := env("EXIT_CODE"); s != "" {
		v, err := strconv.Atoi(s)
		if err != nil {
			return cfg, fmt.Errorf("parse EXIT_CODE: %w", err)
		}
		cfg.exitCode = v
	}
	return cfg, nil
}

// serve returns the first error of any port.
func serve(cfg config, start time.Time) error {
	web := newWeb(cfg.name, start.Add(cfg.readyDelay))
	errc := make(chan error)
	for _, p := range []struct {
		port  string
		serve func(net.Listener) error
	}{
		{cfg.http, web.serve},
		{cfg.ws, web.serve},
		{cfg.tls, web.serveTLS},
		{cfg.echo, serveEcho},
		{cfg.greeting, func(l net.Listener) error { return serveGreeting(l, cfg.name) }},
		{cfg.script, serveScript},
		{cfg.proxy, func(l net.Listener) error { return web.serve(demandHeader(l, cfg.proxy)) }},
		{cfg.dns, func(l net.Listener) error { return serveDNS(l, cfg.name) }},
	} {
		if p.port == "" {
			continue
		}
		l, err := listen(p.port)
		if err != nil {
			return err
		}
		go func() { errc <- p.serve(l) }()
	}
	for _, p := range []struct {
		port  string
		serve func(net.PacketConn, string) error
	}{
		{cfg.udp, serveUDP},
		{cfg.dns, serveDNSPackets},
		{cfg.dialogue, serveDialogue},
	} {
		if p.port == "" {
			continue
		}
		c, err := net.ListenPacket("udp", ":"+p.port)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		go func() { errc <- p.serve(c, cfg.name) }()
	}
	log.Print("listening")
	return <-errc
}

// listen leaves Multipath TCP off: its sockets are of a protocol that
// checkpointing and other tools do not know.
func listen(port string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", ":"+port)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return logged{l, port}, nil
}

// logged writes one line per accepted connection.
type logged struct {
	net.Listener
	port string
}

func (l logged) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		log.Printf("conn %s %s", l.port, c.RemoteAddr())
	}
	return c, err
}
