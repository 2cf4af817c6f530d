// Demo shows sluice at work: the program as it is installed, on real
// containers, in a sandbox of its own. It needs root and ends in under a minute.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"sluice/testenv"
)

func main() {
	program := flag.String("sluice", "bin/sluice", "`path` of the program to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := testenv.Program("demo", os.Stderr, func(t testenv.TB) {
		tell(ctx, t, *program, os.Stdout)
	})
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintf(os.Stderr, "\ndemo: FAILED: %v\n", err)
		os.Exit(1)
	}
}
