package client

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// watchedBody is an answer's body that is read along. It gives what the body gives, at
// once and unchanged.
type watchedBody struct {
	io.ReadCloser
	m      *metered
	tally  tally
	reader reader
	err    error // why the answer cannot be read along; nil: it can

	mu      sync.Mutex // Close may come while a Read waits
	settled bool
}

// Read passes on, and settles at the end.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.mu.Lock()
		if !b.settled && b.err == nil {
			_, b.err = b.reader.Write(p[:n])
		}
		b.mu.Unlock()
	}
	if err != nil {
		b.settle(err)
	}
	return n, err
}

// Close settles what was not read to its end: many readers stop at the last event.
func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.settle(ErrCut)
	return err
}

// settle accounts for the answer, once. An answer that has told its usage is charged
// however it ended; of another, only its own end or its being cut is known.
func (b *watchedBody) settle(ending error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.settled {
		return
	}
	b.settled = true
	b.reader.end()
	switch {
	case b.tally.complete():
		b.m.settle(b.tally.tokens, nil)
	case b.err != nil:
		b.m.settle(Tokens{}, Unknown(fmt.Errorf("%w: %w", ErrNoUsage, b.err)))
	case errors.Is(ending, io.EOF):
		b.m.settle(Tokens{}, Unknown(ErrNoUsage))
	default:
		b.m.settle(Tokens{}, Unknown(ending))
	}
}

// decoded has a reader read an encoded answer. net/http decodes what it has asked for
// itself; this is for callers who ask for an encoding of their own.
func decoded(encoding string, r reader) (reader, error) {
	switch strings.ToLower(encoding) {
	case "", "identity":
		return r, nil
	case "gzip":
		in, out := io.Pipe()
		g := &gunzip{into: r, pipe: out}
		g.done.Go(func() { g.run(in) })
		return g, nil
	}
	return r, fmt.Errorf("its encoding %s cannot be read; ask for gzip, or for none", encoding)
}

// gunzip decodes a copy of the bytes on the way to a reader.
type gunzip struct {
	into reader
	pipe *io.PipeWriter
	done sync.WaitGroup
}

// run ends with the pipe, or at the first byte that is no gzip: what comes after is
// let pass unread.
func (g *gunzip) run(in *io.PipeReader) {
	plain, err := gzip.NewReader(in)
	if err == nil {
		_, err = io.Copy(struct{ io.Writer }{g.into}, plain) //nolint:gosec // the reader keeps a bounded part of it
	}
	_, _ = io.Copy(io.Discard, in) // so that no writer waits for ever
	_ = in.CloseWithError(err)
}

// Write gives bytes to the decoder.
func (g *gunzip) Write(p []byte) (int, error) { return g.pipe.Write(p) }

// end waits until the decoder has read what it got.
func (g *gunzip) end() {
	_ = g.pipe.Close() // of a pipe, it cannot fail
	g.done.Wait()
	g.into.end()
}
