// Package importer sends files of usage, one JSON object a line, to a running
// server. It may be ended at any moment, by a signal or by a crash, and goes on
// where it stopped.
//
// Promised:
//
//   - Every line is recorded once or, if it is refused, kept with the reason. What
//     was sent but not yet noted is sent again with the same ids, and the server
//     answers what it has recorded as a replay.
//   - Memory is bounded by the number of requests under way, whatever the size of
//     the file.
//
// Not promised: the order in which lines are recorded, unless one request is under
// way at a time. It matters where the balance does not cover all lines, to which
// of them are refused, and where lines share an id, to which of them stands.
package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"tallystick/internal/clock"
)

// Bounds and defaults of an import.
const (
	ParallelDefault = 4
	ParallelMax     = 64
	BatchDefault    = 500
	BatchMax        = 1000    // what the routes take
	groupBytesMax   = 4 << 20 // of lines in one request; the routes take 8 MiB
	lineMax         = 1 << 20 // as the body of a single usage

	PatienceDefault = 2 * time.Minute

	requestTime = time.Minute
	graceTime   = 5 * time.Second // for answers that are under way when an import is stopped
	saveEvery   = 250 * time.Millisecond
)

// Options say what to import and where.
type Options struct {
	URL, Key    string
	Path        string    // of the file, compressed where it ends in .gz; "-" reads Input and cannot be continued
	Input       io.Reader // for "-"
	CloudEvents bool      // a line is a CloudEvent, not a usage
	Rejects     string    // file for the lines that are refused; "" for none
	Restart     bool      // begin again, whatever an earlier import has noted
	Parallel    int       // requests under way, default ParallelDefault
	Batch       int       // lines in a request, default BatchDefault
	Patience    time.Duration
	Note        func(format string, args ...any) // for people; default silence
	Progress    func(p Progress)                 // default nothing
	Client      *http.Client                     // default one with as many connections as requests
}

// Summary counts the lines that are done with, those of earlier runs included.
// Blank lines are none.
type Summary struct {
	Recorded int64 `json:"recorded"`
	Replayed int64 `json:"replayed"` // recorded before
	Rejected int64 `json:"rejected"`
}

// Progress is how far an import has come.
type Progress struct {
	Bytes int64 // of the file, as it is stored
	Size  int64 // of the file; 0: unknown
	Summary
}

// Errors that say what to do.
var (
	// ErrStopped says that the context ended before the file did.
	ErrStopped = errors.New("stopped before the end")
	// ErrUnreachable says that the server did not answer for as long as Patience.
	ErrUnreachable = errors.New("the server cannot be reached")
)

// UseError is a mistake of the caller's, which trying again does not help.
type UseError struct{ text string }

// Error says what is wrong and what to do.
func (e *UseError) Error() string { return e.text }

func useErrorf(format string, args ...any) error {
	return &UseError{text: fmt.Sprintf(format, args...)}
}

// item is one line on its way.
type item struct {
	line    int64
	text    []byte
	outcome outcome
	problem []byte // of a line that is rejected: a problem document
}

type outcome int

const (
	outcomePending outcome = iota
	outcomeRecorded
	outcomeReplayed
	outcomeRejected
)

// group is the lines of one request, and how far the file is read with them.
type group struct {
	number int
	items  []item
	end    position
	bytes  int64 // of the file as it is stored
}

// run is one import under way.
type run struct {
	o      Options
	source *source
	tally  *tally
	answer atomic.Pointer[clock.Instant] // the last that the server gave
	noted  atomic.Bool                   // that the server does not answer

	groups int   // in the file, once it is read to its end; -1 before
	broken error // why it could not be read any further
}

// Run imports the file to its end and gives what became of its lines, also with
// an error: ErrStopped, ErrUnreachable, a *UseError, or of the file itself.
func Run(ctx context.Context, o Options) (Summary, error) {
	o.defaults()
	t, earlier, err := openTally(o)
	if err != nil {
		return Summary{}, err
	}
	s, err := openSource(o, earlier.Position)
	if err != nil {
		return t.Summary, err
	}
	defer s.close()
	if err := t.begin(earlier); err != nil {
		return t.Summary, errors.Join(err, t.close())
	}
	if line := earlier.Position.Line; line > 0 {
		o.Note("going on behind line %d", line)
	}
	i := &run{o: o, source: s, tally: t, groups: -1}
	i.answered()
	err = i.all(ctx)
	if err == nil {
		return t.Summary, t.finish()
	}
	return t.Summary, errors.Join(err, t.save(), t.close())
}

func (o *Options) defaults() {
	if o.Parallel == 0 {
		o.Parallel = ParallelDefault
	}
	if o.Batch == 0 {
		o.Batch = BatchDefault
	}
	if o.Patience == 0 {
		o.Patience = PatienceDefault
	}
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Client == nil {
		o.Client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: o.Parallel, Proxy: http.ProxyFromEnvironment}}
	}
}

// answered notes that the server does its work.
func (i *run) answered() {
	now := clock.Tick()
	i.answer.Store(&now)
}

// all reads, sends and notes until the file ends or something else does. Groups
// are sent side by side and noted in the order of the file; the window bounds
// how many are between being read and being noted.
func (i *run) all(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	window := make(chan struct{}, 2*i.o.Parallel)
	read, done := make(chan *group), make(chan *group)
	go func() {
		defer close(read)
		i.read(ctx, window, read)
	}()
	var senders sync.WaitGroup
	for range i.o.Parallel {
		senders.Go(func() {
			for g := range read {
				if err := i.record(ctx, g); err != nil {
					cancel(err)
					continue // what else is read is passed over: the context has ended
				}
				done <- g
			}
		})
	}
	go func() {
		senders.Wait()
		close(done)
	}()
	if err := i.note(done, window); err != nil {
		cancel(err)
		for range done { // so that no sender waits for ever
		}
	}
	if i.tally.groups == i.groups { // all of the file, also where the context ended just now
		return i.broken
	}
	if err := context.Cause(ctx); ctx.Err() != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return ErrStopped
}

// read hands groups on until the file or the context ends. What cannot be read
// ends the import when everything before it is recorded.
func (i *run) read(ctx context.Context, window chan<- struct{}, read chan<- *group) {
	for number := 0; ; number++ {
		select {
		case window <- struct{}{}:
		case <-ctx.Done():
			return
		}
		g, err := i.source.group(number, i.o.Batch, i.o.CloudEvents)
		if g == nil {
			i.groups, i.broken = number, err
			return
		}
		select {
		case read <- g:
		case <-ctx.Done():
			return
		}
	}
}

// note notes groups in the order of the file.
func (i *run) note(done <-chan *group, window <-chan struct{}) error {
	waiting := map[int]*group{}
	for g := range done {
		waiting[g.number] = g
		for next := waiting[i.tally.groups]; next != nil; next = waiting[i.tally.groups] {
			delete(waiting, next.number)
			if err := i.tally.note(next); err != nil {
				return err
			}
			i.o.Progress(Progress{Bytes: next.bytes, Size: i.source.size, Summary: i.tally.Summary})
			<-window
		}
	}
	return nil
}
