// Command tallystick meters usage of AI products against prepaid credits, takes
// purchases in from Stripe, sends usage out to Stripe, and proves on a schedule
// that both halves match.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// gcPercent trades memory, of which little is used, for time: the heap may grow
// to so much more than what is live before it is collected. GOGC overrides it.
const gcPercent = 400

func main() {
	if _, said := os.LookupEnv("GOGC"); !said {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
