// Package simulate runs the decisions of package policy over a trace of flows
// in a simulated host, in virtual time: no container, no kernel, no clock. The
// same trace, seed and parameters give the same result, bit by bit.
//
// What is simulated is what a decision depends on: an accept queue and its
// backlog, containers that take their time to start and whose starts wait for
// each other, a map that is acknowledged, flows that pick a replica by the
// map's shares and stay with it. What a replica does with more flows than it
// should carry is not: its flows last as long as the trace says.
package simulate
