package testenv

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
)

// Program runs f as a test would be run, for programs that are none: log gets
// what f logs, and what f registered with Cleanup has run by the time Program
// returns. The error joins all of f's; a skip is one too.
func Program(name string, log io.Writer, f func(TB)) error {
	p := &program{name: name, log: log}
	p.run(func() { f(p) })
	for {
		p.mu.Lock()
		if len(p.cleanups) == 0 {
			p.mu.Unlock()
			break
		}
		last := len(p.cleanups) - 1
		c := p.cleanups[last]
		p.cleanups = slices.Delete(p.cleanups, last, last+1)
		p.mu.Unlock()
		p.run(c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.errs...)
}

type program struct {
	name string

	mu       sync.Mutex
	log      io.Writer
	errs     []error
	cleanups []func()
}

// run gives f a goroutine that Fatalf can end.
func (p *program) run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func (p *program) Helper()      {}
func (p *program) Name() string { return p.name }

func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

func (p *program) Logf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.log, format+"\n", args...)
}

func (p *program) Errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

func (p *program) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit()
}

func (p *program) Skipf(format string, args ...any) {
	p.Fatalf(format, args...)
}

func (p *program) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.errs) > 0
}
