// Package policy decides what sluice does: when a service wakes, how many
// replicas it runs, which one is drained and when a container may be stopped.
//
// It is pure. A [Service] is a value that is stepped with events and answers
// with actions; it starts no goroutine, does no I/O and reads no clock. One
// owner steps a service, so that every race of the daemon is an order of
// events that a test can write down, enumerate or fuzz.
//
// # How a step works
//
// An event first corrects what the service believes ([Service.Step]); then one
// level-triggered pass compares belief with intent and emits what is missing.
// An event that comes twice, late or not at all therefore never leads to a
// different place, only later to the same one.
//
// # Invariants
//
//   - A [Map] names only backends that are ready.
//   - [Stop] of a backend that was ever mapped follows a [Map] without it that
//     the kernel has acknowledged (the fence), and then a count of zero flows
//     that was taken after the fence, the drain deadline, or the backend's own
//     death.
//   - Every accepted connection is answered by exactly one [Serve] or [Reset],
//     the latter not before the start has failed.
//   - At most one [Start], [Prepare] or [Stop] is in flight for a backend.
//   - Unknown is busy: without data nothing is drained or stopped.
package policy
