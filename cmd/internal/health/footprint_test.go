package health

import (
	"runtime"
	"runtime/debug"
)

// footprint returns the bytes of heap and stacks in use.
func footprint() uint64 {
	// The stack of a parked goroutine is halved once per collection.
	for range 4 {
		debug.FreeOSMemory()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
