package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

type web struct {
	name  string
	ready time.Time
	http.Server
}

func newWeb(name string, ready time.Time) *web {
	w := &web{name: name, ready: ready}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", w.who)
	mux.HandleFunc("/who", w.who)
	mux.HandleFunc("/healthz", w.health)
	mux.HandleFunc("/bytes", sendBytes)
	mux.HandleFunc("/upload", upload)
	mux.HandleFunc("/hold", hold)
	mux.HandleFunc("/env", environment)
	mux.HandleFunc("/exit", exit)
	mux.HandleFunc("/ws", webSocket)
	w.Handler = mux
	w.Protocols = new(http.Protocols)
	w.Protocols.SetHTTP1(true)
	w.Protocols.SetHTTP2(true)
	w.Protocols.SetUnencryptedHTTP2(true)
	return w
}

func (w *web) serve(l net.Listener) error { return w.Serve(l) }

func (w *web) who(rw http.ResponseWriter, r *http.Request) {
	reply(rw, map[string]string{"name": w.name, "remote": r.RemoteAddr})
}

func (w *web) health(rw http.ResponseWriter, _ *http.Request) {
	if time.Now().Before(w.ready) {
		http.Error(rw, "starting", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(rw, "ok")
}

// sendBytes answers ?n= bytes of ChaCha8 (math/rand/v2) keyed by ?seed=, at
// ?rate= bytes per second or as fast as they are taken.
func sendBytes(rw http.ResponseWriter, r *http.Request) {
	n, err1 := number(r, "n")
	rate, err2 := number(r, "rate")
	seed, err3 := number(r, "seed")
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
	}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], uint64(seed))
	body := io.LimitReader(rand.NewChaCha8(key), n)
	rw.Header().Set("Content-Type", "application/octet-stream")
	rw.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	if rate == 0 {
		_, _ = io.Copy(rw, body) // fails when the client leaves
		return
	}
	const tick = 20 * time.Millisecond
	pace := time.NewTicker(tick)
	defer pace.Stop()
	chunk := max(1, rate*int64(tick)/int64(time.Second))
	for {
		m, err := io.CopyN(rw, body, chunk)
		if err != nil || m < chunk {
			return
		}
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-pace.C:
		}
	}
}

func upload(rw http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	reply(rw, map[string]any{"sha256": hex.EncodeToString(h.Sum(nil)), "size": n})
}

// hold sends a dot every ?every= (200ms) for ?for= (60s), then a newline.
func hold(rw http.ResponseWriter, r *http.Request) {
	last, err1 := duration(r, "for", time.Minute)
	every, err2 := duration(r, "every", 200*time.Millisecond)
	if err1 != nil || err2 != nil {
		http.Error(rw, "want durations", http.StatusBadRequest)
		return
	}
	end := time.After(last)
	pace := time.NewTicker(every)
	defer pace.Stop()
	for {
		if _, err := io.WriteString(rw, "."); err != nil {
			return
		}
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-end:
			fmt.Fprintln(rw)
			return
		case <-pace.C:
		}
	}
}

func environment(rw http.ResponseWriter, _ *http.Request) {
	env := map[string]string{}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	reply(rw, env)
}

// exit ends the program with ?code= once the answer is sent.
func exit(rw http.ResponseWriter, r *http.Request) {
	code, err := number(r, "code")
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	reply(rw, map[string]int64{"code": code})
	_ = http.NewResponseController(rw).Flush()
	os.Exit(int(code))
}

func reply(rw http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	b = append(b, '\n')
	rw.Header().Set("Content-Type", "application/json")
	// With its length given the answer is complete once flushed.
	rw.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = rw.Write(b) // fails when the client leaves
}

// number reads a query parameter that may be absent but not negative.
func number(r *http.Request, key string) (int64, error) {
	s := r.FormValue(key)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("bad %s %q", key, s)
	}
	return n, nil
}

func duration(r *http.Request, key string, def time.Duration) (time.Duration, error) {
	s := r.FormValue(key)
	if s == "" {
		return def, nil
	}
	d, err := time.ParseDuration(s)
	if err == nil && d <= 0 {
		err = fmt.Errorf("bad %s %q", key, s)
	}
	return d, err
}
