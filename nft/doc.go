// Package nft keeps the one nftables table through which sluice sends flows to
// backends, without a process in between: table inet sluice.
//
// The chains and rules are fixed; at run time only elements of maps and sets
// change. What is wanted is a value (a map of Endpoint to Service), the change
// towards it is computed without the kernel, and it goes to the kernel as one
// transaction. The kernel is read at the start, after an error, and when
// somebody else has touched the table.
//
// # Way of a packet
//
//	raw-prerouting     -300  drop packets of frozen tuples; strip TCP timestamps from SYNs to cold services
//	raw-output         -300  the same freeze for clients on the host; TCP with PacketMark is not tracked
//	filter-prerouting  -150  drop TCP that conntrack calls invalid, to services and from backends
//	nat-prerouting     -105  new flows: address . protocol . port
//	nat-output         -105      → first → backend
//	                             → spread → a lane's chain → slots → backend
//	                             → known → ruled, for all that is not plain:
//	                                 limited → limits: past the slots who is not allowed; drop what is beyond
//	                                 sticky → recall: the backend that the client had
//	                                 spread-ruled → a lane's chain → slots → backend
//	                                 rest → backend
//	                             → local: the same for a service at every local address
//	                             → nothing: the host itself (the service is cold, or unknown)
//	filter-input          5  new flows to the host: those of clients that are not allowed, to services
//	                         that are screened, are answered as by a closed port
//	filter-forward       90  log packets to backends that are asleep, but not of clients that are not
//	filter-output        90  allowed, nor empty ones to the patient; remember the backends of clients;
//	                         note flows that go out where they came in
//	nat-postrouting      95  masquerade clients next to their backend, at 127.0.0.0/8, and of services
//	                         that say so; give relayed flows their client's address; leave all others
//
// A service is plain if it has neither limits nor affinity. What a packet passes
// before it is on its way is what a connection costs more than one rule of NAT,
// so rules are in chains of one family each, and begin with what rules most
// packets out.
//
// Sets and maps, each for IPv4 and IPv6 (suffix 4 or 6):
//
//	known      every service                       cold    those without slots
//	first      plain service of one slot → backend spread  plain one with several → lane
//	rest       any other → backend of slot 0       spread-ruled  one that is not plain → lane
//	slotsF-N   service . slot → backend, N slots   backends  every backend, and for a day those let go
//	frozen     client . service                    replay  client . backend
//	masquerade services                            sources flow of the host → client
//	asleep     backends                            alarms  those that were heard, with their limit
//	sticky     services with affinity              keep    service → chain that remembers for its time
//	affinity   service . client → number           members service . number → backend
//	screened   services that only those allowed may reach now
//	allowed    service . prefix of clients         patient services that only data wakes
//	marks      flow → conntrack mark               spread-any  spread of services at every local address
//
// and of limits:
//
//	limited       services with limits             refused   these, each with its counter of drops
//	rates         service, each with its limit     flows     the same
//	client-rates  service → chain of its limit     client-flows  the same
//	rate-of       service . client, with its state flows-of  the same
//
// A service of one slot needs no lane, and so to wake it is to add one element.
// A service at every local address has the unspecified address as its key; that
// of a packet is masked to it once the packet's own address has found nothing
// and is one of the host's.
//
// What cannot be told from the sets that packets look into (the way to choose,
// the affinity) is the comment of the element in known, so that all of Service
// is found again by Open. The clients that are remembered, sources and frozen
// tuples live with the table: they are lost when it must be built anew.
//
// # Round robin
//
// A service of N slots uses a chain that counts modulo N. The counter would not
// be even for two services that share it, so each has a chain of its own: a
// lane. There are 16 lanes for each N up to 4, 8 up to 8 and 4 for each larger
// class, in each family; when they are taken, further services of the class are spread at
// random, which is even on average, until they change again after a lane has
// become free. Which lane is whose is held by the spread map, and survives the
// process.
//
// # Affinity
//
// After the translation of a new flow the kernel notes, under service . client,
// a hash of the backend: a number that user space can compute too. The next flow
// finds the number, and under service . number the backend. If this has left the
// slots, its element has gone in the same transaction: the number leads nowhere,
// is forgotten, and the client takes a slot like a new one. So nothing has to be
// swept, and clients of other backends are not concerned by slots at all.
//
// The backend itself is not noted, since its membership would have to be looked
// up by the result of a lookup, and nft before 1.1 aborts when it lists this.
// Between the two maps the number is in the conntrack mark instead. A mark of
// others waits in the map marks meanwhile, and is put back.
//
// A timeout is part of a rule, so there is a chain for each of Affinities. Each
// family remembers a million clients (160 bytes each); while this is full, new
// clients just take slots. On Linux before 6.12 as after, every new flow begins
// the time again.
//
// # For neighbours
//
// A flow that went through the table has CTMark under CTMask as its conntrack
// mark. Other bits of it, and of the packet mark but PacketMask, are not touched;
// in particular not packet mark 0x2000 and conntrack mark 0x1000, which are
// netavark's. The NAT chains come before priority -100: the first chain that
// binds a flow wins. A drop in another table wins over the accept in this one.
// No rule is ever put into another table but that of a [Hold], which decides
// nothing and ends with its process.
//
// Masquerading clients at 127.0.0.0/8 works only if route_localnet is set on
// the device towards the backend. The kernel cannot translate ::1 at all: a
// service there must stay without slots.
//
// Linux 5.18 is needed, with the modules of nftables for NAT, numgen, hash, fib,
// limit, connlimit and log (nfnetlink_log). Cost, on 10,000 services: to wake one
// or to change a slot, some 50 µs; to give one several slots, 1 ms, since the
// kernel then checks all jumps anew; to load all, 0.4 s. A packet that begins a
// flow of a plain service finds its backend with the first look, or with several
// slots the third; later packets of our flows look for their backend in asleep,
// and those on the way back for nothing but frozen tuples.
package nft
