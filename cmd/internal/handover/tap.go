package handover

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// tap sees what backends send and hands it out by connection. It serves a whole
// batch, since sockets of their own would each see all the others' packets.
//
// What decides an attempt comes by a socket that receives nothing else. What is
// acknowledged afterwards comes by another, which may lose packets when much goes
// over the very connections that are watched: what is not known to be acknowledged
// is sent again, and acknowledged again. Traffic of other connections reaches
// neither, of those that have been handed over just before in particular.
type tap struct {
	answers  *packetSocket
	progress *packetSocket
	backends []netip.Addr

	mu             sync.Mutex
	peers          map[pair]*peer
	followed       []pair
	passing        int  // connections the filter passes, of which some may be over
	stale          bool // such there are
	packets, drops uint64
}

type pair struct{ backend, client netip.AddrPort }

// maxFollowed keeps the filter within the kernel's 4096 instructions.
const maxFollowed = 64

// openTap starts to see what backends send to clients, and does until each is
// forgotten. It belongs to the network namespace of the calling thread.
func openTap(pairs []pair) (*tap, error) {
	t := &tap{peers: make(map[pair]*peer, len(pairs))}
	for _, k := range pairs {
		t.backends = append(t.backends, k.backend.Addr())
		t.peers[k] = &peer{wake: make(chan struct{}, 1)}
	}
	t.passing = len(t.peers)
	var err error
	if t.answers, err = openPacketSocket(answerFilter(t.backends), t.see); err != nil {
		return nil, err
	}
	if t.progress, err = openPacketSocket(progressFilter(t.backends, pairs, nil), t.see); err != nil {
		t.answers.close()
		return nil, err
	}
	return t, nil
}

func (t *tap) see(s *segment) {
	t.mu.Lock()
	from, to := t.peers[pair{s.src, s.dst}], t.peers[pair{s.dst, s.src}]
	t.mu.Unlock()
	if from != nil {
		from.see(s)
	}
	if to != nil {
		to.seeClient(s)
	}
}

// peer returns nil for what is not watched.
func (t *tap) peer(k pair) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[k]
}

// forget leaves the filter as it is until half of what it passes is of no more
// interest: to change it costs as much as a packet or two hundred.
func (t *tap) forget(k pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, k)
	t.stale = true
	i := slices.Index(t.followed, k)
	if i >= 0 {
		t.followed = slices.Delete(t.followed, i, i+1)
	}
	if i >= 0 || 2*len(t.peers) <= t.passing {
		_ = t.refilter() // else too much is seen until the tap is closed
	}
}

// follow has the packets of the client seen too, as they leave this host for the
// backend, translated. From here on nothing passes of connections that are over.
func (t *tap) follow(k pair) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	add := len(t.followed) < maxFollowed && !slices.Contains(t.followed, k)
	if add {
		t.followed = append(t.followed, k)
	}
	if !add && !t.stale {
		return nil
	}
	return t.refilter()
}

func (t *tap) refilter() error {
	watched := make([]pair, 0, len(t.peers))
	for k := range t.peers {
		watched = append(watched, k)
	}
	if err := t.progress.refilter(progressFilter(t.backends, watched, t.followed), len(t.followed) > 0); err != nil {
		return fmt.Errorf("watch %d connections: %w", len(watched), err)
	}
	t.passing, t.stale = len(watched), false
	return nil
}

// lost returns an error if packets could not be taken in, as a hint to why
// something has not been seen.
func (t *tap) lost() error {
	p1, d1, err1 := t.answers.dropped()
	p2, d2, err2 := t.progress.dropped()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.packets += uint64(p1) + uint64(p2)
	t.drops += uint64(d1) + uint64(d2)
	if t.drops > 0 {
		return errors.Join(fmt.Errorf("%d of %d packets seen were lost", t.drops, t.packets), err1, err2)
	}
	return errors.Join(err1, err2)
}

func (t *tap) close() {
	t.answers.close()
	t.progress.close()
}
