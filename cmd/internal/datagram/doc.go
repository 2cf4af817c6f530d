// Package datagram holds the first datagrams of a UDP service that sleeps, and
// passes them on when it has woken.
//
// While the table inet sluice has no slots for the service's address, datagrams
// reach a socket of this package. The owner hears once of each new client, and
// answers with [Listener.Release] or [Listener.Refuse]; what the client sends
// meanwhile is held too, within [Limits]. What is passed on leaves by a raw
// socket, from the client's address to the service's, so that the table chooses
// a backend as for any other datagram: same slots, same affinity, same mark.
//
// # One conntrack entry
//
// The first datagram, while cold, has made a conntrack entry that translates
// nothing, for as long as the client goes on sending. It is deleted; then the
// raw packet makes a new one on its way through the nat output hook: original
// tuple client → service, reply backend → client. The client's own packets come
// by prerouting and match that tuple, the backend's replies match its reply, and
// leave with the service's address as their source. Tried on Linux 6.18, IPv4
// and IPv6, with clients elsewhere, on the host, and at 127.0.0.1:
//
//   - rp_filter and the check for martians concern input alone, and the backend
//     gets what a router would send it. The route is looked up anew after the
//     translation, for any source address.
//   - Postrouting keeps the client's address, by the table's own rule. A client
//     on the backend's own network gets this host's: the answer would go to it
//     over the bridge, from an address that it has not called.
//   - The kernel cuts an IPv4 packet of up to 64 KiB to what the backend's link
//     takes; it has only to fit the loopback device, by whose route it begins.
//     It refuses to cut IPv6 packets of a raw socket, but reassembles fragments
//     in the output hook, translates the whole and cuts again. So IPv6 goes out
//     in fragments of 1280 bytes, and IPv4 too if loopback is too small.
//   - TTL or hop limit is one less than received, as in a forwarded packet; type
//     of service and ECN are kept, the don't-fragment bit is not.
//   - The packet passes the host's output rules instead of its forward rules.
//
// Writing the translated entry by netlink would do as well, but then this
// package and not the table would choose the backend.
//
// # Order
//
// A client's datagrams are passed on in order. Between the deletion and the last
// of them, what the client sends takes the direct way, and overtakes those still
// held: it is not lost, nor does it choose another backend. Of 48 clients that
// sent without pause through the wake, two saw that.
//
// # Stragglers
//
// A datagram can reach the socket though the slots are there: its client's entry
// began cold, or it was just under way. In [Pass] it is treated the same at
// once. If its client was passed on in the last seconds, the entry is looked up
// by a dump, and deleted only if it still translates nothing: a translated one
// stays, and with it the client's backend. So there is no need of a fence between
// slots and Pass.
//
// If it comes back, the table has no slots (it may have been flushed): it is
// sent again after growing pauses of up to a second, until it gets through or
// has no hops left.
//
// # Exchanges
//
// What is from or to ::1 cannot be translated either, but it can be carried: each
// such client gets a socket of its own to its backend, for as long as something
// is said. They are few, and when there are too many the longest silent goes.
//
// # Cost
//
// An idle listener takes 5 KiB, a goroutine and a descriptor. To pass on a
// client takes some 25 µs. The group has two raw sockets more.
//
// # Limits
//
// Not for link-local addresses, which cannot be translated; such datagrams, and
// those to broadcast addresses, are counted and dropped. Many
// datagrams at once may exceed the backend's socket buffer, like any burst; and
// until its link address is known, the kernel keeps 208 KiB for it. The client's
// IP options and IPv6 extension headers are not passed on.
package datagram
