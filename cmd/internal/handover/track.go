package handover

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/nft"
)

// flowTimeout is what the kernel gives an established connection until its next
// packet (net.netfilter.nf_conntrack_tcp_timeout_established).
const flowTimeout = 5 * 24 * time.Hour

// flow is the connection as it shall be tracked: translated to the backend, with
// the backend's sequence numbers shifted to those the client knows.
func (m *move) flow() conntrack.Entry {
	s := m.state
	flags := uint8(conntrack.FlagLiberal)
	if s.scaled {
		flags |= conntrack.FlagWindowScale
	}
	if s.sack {
		flags |= conntrack.FlagSACK
	}
	shift := s.own - m.synack.seq
	return conntrack.Entry{
		Orig:    conntrack.Tuple{Src: m.Client, Dst: m.Service, Proto: unix.IPPROTO_TCP},
		Backend: m.Backend,
		Mark:    nft.CTMark,
		Timeout: flowTimeout,
		State:   conntrack.StateEstablished,
		// Nothing has been seen of the windows: without the liberal flag the
		// first packets would be judged by a window of zero.
		OrigScale: s.theirs, ReplyScale: s.ours,
		OrigFlags: flags, ReplyFlags: flags,
		ReplySeqAdj: conntrack.SeqAdj{Before: shift, After: shift},
	}
}

// plain is the connection as it was tracked while held, to this host.
func (m *move) plain() conntrack.Entry {
	e := m.flow()
	e.Backend, e.Mark, e.ReplySeqAdj = m.Service, 0, conntrack.SeqAdj{}
	return e
}

// replaceTries is how often an entry that came up in between is deleted again: an
// acknowledgement that the held socket had delayed makes one.
const replaceTries = 3

// replace puts entries in the place of whatever is tracked under their tuples.
func replace(t Tracker, entries []conntrack.Entry) []error {
	errs := make([]error, len(entries))
	todo := make([]int, len(entries))
	for i := range todo {
		todo[i] = i
	}
	for try := 1; len(todo) > 0; try++ {
		var b conntrack.Batch
		var sent, again []int
		for _, i := range todo {
			b.Delete(entries[i].Orig)
			if errs[i] = b.Create(entries[i]); errs[i] == nil {
				sent = append(sent, i)
			} else {
				// The deletion alone would leave the connection untracked.
				return all(len(entries), errs[i])
			}
		}
		results, err := t.Do(&b)
		for n, i := range sent {
			if err != nil {
				errs[i] = err
				continue
			}
			gone, made := results[2*n], results[2*n+1]
			errs[i] = made
			if errors.Is(made, fs.ErrExist) {
				if try < replaceTries {
					again = append(again, i)
				} else if gone != nil {
					errs[i] = fmt.Errorf("%w (%w)", made, gone)
				}
			}
		}
		todo = again
	}
	return errs
}
