package datagram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// journal is a file in memory with what a listener holds, for another process to
// go on with, also if this one is killed: every datagram is written as it comes
// in. What has been passed on meanwhile may be there too, and is then passed on
// twice, which is the nature of datagrams.
type journal struct {
	fd   int
	size int64
	off  bool // it failed once
}

// slack is what a journal may have besides what is held.
const slack = 64 << 10

func newJournal(addr netip.AddrPort) (*journal, error) {
	fd, err := unix.MemfdCreate("sluice-"+addr.String(), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return &journal{fd: fd}, nil
}

// A record is its length and then the flow, hops, type of service and data, all
// in network byte order: the version that reads it may be another one.
const (
	recordFlow = 2 * (16 + 1 + 2)
	recordHead = recordFlow + 2
)

func (j *journal) append(fl flow, d datagram) error {
	b := make([]byte, 4, 4+recordHead+len(d.data))
	binary.BigEndian.PutUint32(b, uint32(recordHead+len(d.data)))
	for _, a := range []netip.AddrPort{fl.client, fl.service} {
		ip := a.Addr().As16()
		b = append(b, ip[:]...)
		is4 := byte(0)
		if a.Addr().Is4() {
			is4 = 1
		}
		b = append(b, is4)
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	b = append(b, d.hops, d.tos)
	b = append(b, d.data...)
	for off := j.size; len(b) > 0; {
		n, err := unix.Pwrite(j.fd, b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return errors.Join(os.NewSyscallError("pwrite", err), unix.Ftruncate(j.fd, j.size))
		}
		b, off = b[n:], off+int64(n)
		if len(b) == 0 {
			j.size = off
		}
	}
	return nil
}

// rewrite makes it what is held now.
func (j *journal) rewrite(s *store) error {
	if err := unix.Ftruncate(j.fd, 0); err != nil {
		return os.NewSyscallError("ftruncate", err)
	}
	j.size = 0
	for _, c := range s.order {
		for _, d := range c.data {
			if err := j.append(c.flow, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// openJournal is for one that another process has left; it also returns what is
// in it. A record that is cut short ends it, and is cut off: what is written from
// now on would be behind it, and nobody would find that.
func openJournal(fd int) (*journal, []record, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, os.NewSyscallError("fstat", err)
	}
	const most = 64 << 20
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > most {
		return nil, nil, fmt.Errorf("no journal: mode %o, size %d", st.Mode, st.Size)
	}
	b := make([]byte, st.Size)
	for off := 0; off < len(b); {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, nil, os.NewSyscallError("pread", err)
		}
		if n == 0 {
			b = b[:off]
		}
		off += n
	}
	list, size := records(b)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, nil, os.NewSyscallError("ftruncate", err)
	}
	return &journal{fd: fd, size: int64(size)}, list, nil
}

type record struct {
	flow flow
	d    datagram
}

// records also returns how many bytes the whole records take.
func records(b []byte) (list []record, size int) {
	for len(b) >= 4 {
		n := int64(binary.BigEndian.Uint32(b))
		if n < recordHead || n > int64(len(b)-4) {
			break
		}
		size += 4 + int(n)
		r := b[4 : 4+n]
		b = b[4+n:]
		addr := func(b []byte) netip.AddrPort {
			ip := netip.AddrFrom16([16]byte(b))
			if b[16] == 1 {
				ip = ip.Unmap()
			}
			return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[17:]))
		}
		list = append(list, record{
			flow{addr(r), addr(r[recordFlow/2:])},
			datagram{data: append([]byte(nil), r[recordHead:]...), hops: r[recordFlow], tos: r[recordFlow+1]},
		})
	}
	return list, size
}

// note writes down a datagram that is held from now on.
func (l *Listener) note(fl flow, d datagram) {
	if l.g.cfg.Journal == nil || l.journal != nil && l.journal.off {
		return
	}
	if l.journal == nil {
		j, err := newJournal(l.addr)
		if err != nil {
			l.journal = &journal{fd: -1, off: true}
			l.trouble(fmt.Errorf("datagrams held on %v/udp will not outlive the process: %w", l.addr, err))
			return
		}
		l.journal = j
		l.g.cfg.Journal(l.addr, j.fd)
	}
	l.wrote(l.journal.append(fl, d))
}

// tidy keeps the journal from growing with what is held no more.
func (l *Listener) tidy() {
	j := l.journal
	if j == nil || j.off || j.size == 0 {
		return
	}
	if l.store.count == 0 || j.size > int64(4*l.store.size)+slack {
		l.wrote(j.rewrite(l.store))
	}
}

func (l *Listener) wrote(err error) {
	if err == nil {
		return
	}
	l.journal.off = true
	_ = unix.Ftruncate(l.journal.fd, 0) // better nothing than what is not true
	l.trouble(fmt.Errorf("datagrams held on %v/udp will not outlive the process: %w", l.addr, err))
}

// resume takes in what another process has held.
func (l *Listener) resume(list []record) {
	for _, r := range list {
		if !r.flow.usable() || !l.store.room(r.flow, len(r.d.data)) {
			l.count.dropped.Add(1)
			continue
		}
		l.count.received.Add(1)
		l.store.add(r.flow, r.d, func() uint64 { return l.g.last.Add(1) })
	}
}

// Suspend stops receiving and passing on until Resume, and returns a file with
// what is held, for Adopt in another process; -1 if that is nothing. The file is
// the caller's. It waits until the listener has stopped.
func (l *Listener) Suspend() (fd int, err error) {
	done := make(chan struct{})
	fd = -1
	if !l.post(func() {
		defer close(done)
		l.suspended = true
		if l.store.count == 0 {
			return
		}
		var j *journal
		if j, err = newJournal(l.addr); err != nil {
			return
		}
		if err = j.rewrite(l.store); err != nil {
			unix.Close(j.fd)
			return
		}
		fd = j.fd
	}) {
		return -1, ErrClosed
	}
	<-done
	if err != nil {
		return -1, fmt.Errorf("suspend %v/udp: %w", l.addr, err)
	}
	return fd, nil
}

// Resume ends Suspend, and begins after Adopt.
func (l *Listener) Resume() { l.post(func() { l.suspended = false }) }
