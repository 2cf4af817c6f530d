package nft

import (
	"errors"
	"fmt"
	"maps"

	"github.com/google/nftables/expr"
)

const (
	// LogGroup is the netfilter log group that tells of packets to backends
	// that are asleep, LogPrefix the prefix of its messages. A message has the
	// first 128 bytes of the packet, from the IP header, whose destination is
	// the backend.
	LogGroup  = 5151
	LogPrefix = "sluice asleep"
)

// Asleep marks backends as asleep, or as awake again, in one transaction; the
// others stay as they are. Every packet of a flow through the table to a
// backend that is asleep is logged to LogGroup on its way there, up to ten a
// second for each backend (the first five at once): data on a flow that was
// left open is an alarm like a new flow. A TCP connection is a flow once its
// handshake is complete: neither a SYN nor a RST is an alarm, nor an ACK for
// which there was none, so that nobody who only claims an address raises one.
// Those of a service's strangers are none (see Service.Screen), nor those
// without data if it is Patient. Packets are not held up, with or
// without a reader. What sleeps is kept like the services, see Sleeping.
func (t *Table) Asleep(changes map[Endpoint]bool) error {
	for b := range changes {
		if err := b.checkBackend(); err != nil {
			return fmt.Errorf("asleep %s: %w", b, err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.commit(t.have.lull(changes))
	before := maps.Clone(t.lull)
	maps.Copy(t.lull, changes)
	maps.DeleteFunc(t.lull, func(_ Endpoint, sleeps bool) bool { return !sleeps })
	if err == nil {
		return nil
	}
	// See put.
	same, again := t.reload()
	if again == nil {
		if same {
			again = t.commit(t.have.lull(t.sleepers()))
		} else {
			again = t.build()
		}
	}
	if again == nil {
		return nil
	}
	t.lull = before
	return errors.Join(fmt.Errorf("asleep: %w", again), fmt.Errorf("at first: %w", err))
}

// Sleeping returns the backends that are asleep, as far as known: what was found
// by Open, Restore or after an error, and what Asleep has changed since.
func (t *Table) Sleeping() map[Endpoint]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.have.asleep)
}

// sleepers is what is wanted of all backends that sleep, or ought to.
func (t *Table) sleepers() map[Endpoint]bool {
	m := maps.Clone(t.lull)
	for b := range t.have.asleep {
		m[b] = t.lull[b]
	}
	return m
}

// alarmChains log a packet to a backend that is asleep, unless it is of a
// connection whose handshake is not complete, comes from a client that is not
// allowed to wake the service, or has no data where that is what it takes.
func alarmChains() []chain {
	alarm, data := chain{name: chainAlarm}, chain{name: chainAlarmData}
	alarm.add(notDNAT(), giveUp())
	// A SYN-ACK has gone to the client's address and been answered from there. The
	// state alone does not tell: a second SYN is of an established one as well.
	alarm.add(isTCP(), notAssured(), giveUp())
	for _, f := range families() {
		dialled := []field{ctDaddr(f), l4proto(), ctDport()}
		anywhere := []field{wild(f, ctDaddr(f)), l4proto(), ctDport()}
		reached := concat(daddr(f), l4proto(), dport())
		ring := rule(reached, rarely(setAlarms+f.name), log())
		stranger := func(of []field) []expr.Any {
			return rule(concat(append(of[:len(of):len(of)], ctSaddr(f))...), notIn(setAllowed+f.name), giveUp())
		}
		alarm.add(isFamily(f), concat(dialled...), in(setScreened+f.name), stranger(dialled))
		alarm.add(isFamily(f), concat(anywhere...), in(setScreened+f.name), concat(dialled...), notIn(setKnown+f.name), stranger(anywhere))
		alarm.add(isFamily(f), isTCP(), concat(dialled...), in(setPatient+f.name), goTo(chainAlarmData))
		alarm.add(isFamily(f), isTCP(), concat(anywhere...), in(setPatient+f.name), concat(dialled...), notIn(setKnown+f.name), goTo(chainAlarmData))
		alarm.add(isFamily(f), ring)
		data.add(isFamily(f), hasData(), ring)
	}
	return []chain{alarm, data}
}

func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}
