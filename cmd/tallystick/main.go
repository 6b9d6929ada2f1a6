// Command tallystick meters usage of AI products against prepaid credits, takes
// purchases in from Stripe, sends usage out to Stripe, and proves on a schedule
// that both halves match.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
