package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

// hold opens a flow that lasts until it is closed.
func hold(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, addr string) net.Conn {
	t.Helper()
	conn, err := s.Client.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatalf("open a flow: %v", err)
	}
	if _, err := fmt.Fprintf(conn, "GET /hold?for=5m HTTP/1.1\r\nHost: %s\r\n\r\n", addr); err != nil {
		t.Fatalf("open a flow: %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatalf("open a flow: %v", err)
	}
	return conn
}

// transfer is a download that takes its time.
type transfer struct {
	size int64
	took time.Duration
	done chan struct{}
	err  error
}

// download fetches size bytes at a rate of bytes per second and compares each
// of them.
func download(ctx context.Context, s *sandbox.Sandbox, addr string, size, rate int64, seed uint64) *transfer {
	d := &transfer{size: size, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		begin := time.Now()
		d.err = d.run(ctx, s, fmt.Sprintf("http://%s/bytes?n=%d&rate=%d&seed=%d", addr, size, rate, seed), seed)
		d.took = time.Since(begin)
	}()
	return d
}

func (d *transfer) run(ctx context.Context, s *sandbox.Sandbox, url string, seed uint64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := s.Client.HTTPClient(testenv.HTTPOptions{}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, want := sha256.New(), sha256.New()
	if n, err := io.Copy(got, resp.Body); err != nil {
		return fmt.Errorf("cut after %d of %d bytes: %w", n, d.size, err)
	}
	if _, err := io.Copy(want, testenv.Bytes(d.size, seed)); err != nil {
		return err
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%s: bytes differ from those that were sent", url)
	}
	return nil
}
