package stripesim

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// journalName is the file in Options.Dir.
const journalName = "stripesim.jsonl"

// compactFrom is how many lines a journal has at least when it is written anew.
const compactFrom = 1000

// entry is one line of the journal.
type entry struct {
	Type    string          `json:"t"` // put, del, all (several that stand or fall together), or what Server.replay knows
	Kind    string          `json:"k,omitempty"`
	ID      string          `json:"id,omitempty"`
	Object  object          `json:"o,omitempty"`
	Seconds float64         `json:"s,omitempty"` // by which a clock was moved, in older journals
	Nanos   int64           `json:"n,omitempty"` // by which a clock was moved; floats would add up to another time
	Raw     json.RawMessage `json:"r,omitempty"`
	Over    bool            `json:"x,omitempty"` // the entries of this type and id before this one are of no use any more
	All     []entry         `json:"a,omitempty"`
}

// moved is how far an entry of type clock moves it.
func (e entry) moved() time.Duration {
	return time.Duration(e.Nanos) + time.Duration(e.Seconds*float64(time.Second)+0.5) // to the nearest nanosecond
}

// overwriting are the types of which only the last entry of each id counts.
var overwriting = []string{"key", "switches", "webhooks", "faults", "delivery", "expired_key"}

// decodeEntry keeps numbers as they are written: ids and amounts would suffer as floats.
func decodeEntry(line []byte) (entry, error) {
	var e entry
	err := decodeExact(line, &e)
	return e, err
}

// journalCount is what a reading of the journal has found, to decide whether to
// write it anew and what to leave out.
type journalCount struct {
	entries int
	plain   int            // of types that only add
	last    map[string]int // of the overwriting types: the number of the last entry
	moved   time.Duration  // by which the clock was moved
}

func (n *journalCount) note(e entry) {
	n.entries++
	switch {
	case e.Type == "put", e.Type == "del":
	case e.Type == "clock":
		n.moved += e.moved()
	case !slices.Contains(overwriting, e.Type):
		n.plain++
	case e.Over:
		delete(n.last, e.Type+" "+e.ID)
	default:
		n.last[e.Type+" "+e.ID] = n.entries
	}
}

// open reads the journal in dir, giving each entry that is not about an object to
// replay. A last line that a crash has torn is cut off; a journal that is much
// longer than what it says is written anew.
func (s *store) open(dir string, replay func(entry) error) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the simulator's directory: %w", err)
	}
	name := filepath.Join(dir, journalName)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the simulator's journal: %w", err)
	}
	n := &journalCount{last: map[string]int{}}
	end, err := eachEntry(f, func(e entry) error {
		n.note(e)
		switch e.Type {
		case "put":
			s.keep(e.Kind, e.ID, e.Object)
		case "del":
			s.drop(e.Kind, e.ID)
		default:
			return replay(e)
		}
		return nil
	})
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil && n.entries > compactFrom && n.entries > 2*(s.size()+len(n.last)+n.plain) {
		f, err = s.compact(name, f, n)
	} else if err == nil {
		_, err = f.Seek(end, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("read the simulator's journal: %w", err)
	}
	s.journal = f
	return nil
}

// size is the number of all objects.
func (s *store) size() (n int) {
	for _, sh := range s.kinds {
		n += len(sh.byID)
	}
	return n
}

// eachEntry reads a journal and tells where its last whole line ends.
func eachEntry(f *os.File, do func(entry) error) (end int64, err error) {
	lines := bufio.NewReaderSize(f, 1<<16)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return end, nil // what has no line end was never answered
		}
		if err != nil {
			return end, err
		}
		e, err := decodeEntry(line)
		all := []entry{e}
		if e.Type == "all" {
			all = e.All
		}
		for _, e := range all {
			if err == nil {
				err = do(e)
			}
		}
		if err != nil {
			return end, fmt.Errorf("line %d of %s, at byte %d, is damaged: %w; bring the file back from a copy, or move it away to begin anew", n, f.Name(), end, err)
		}
		end += int64(len(line))
	}
}

// compact writes a journal of the same meaning beside the old one, puts it in its
// place, and gives it open for more. The old file is closed.
func (s *store) compact(name string, old *os.File, n *journalCount) (*os.File, error) {
	fresh, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return old, err
	}
	if err = s.writeCompact(fresh, old, n); err == nil {
		err = fresh.Sync()
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		return old, errors.Join(err, fresh.Close(), os.Remove(name+".new"))
	}
	if dir, err := os.Open(filepath.Dir(name)); err == nil {
		_ = dir.Sync() // a name that is lost with the machine's power leaves the old journal, which says the same
		_ = dir.Close()
	}
	_ = old.Close() // it was only read
	return fresh, nil
}

func (s *store) writeCompact(to io.Writer, old *os.File, n *journalCount) error {
	buffer := bufio.NewWriterSize(to, 1<<16)
	lines := json.NewEncoder(buffer)
	for _, kind := range slices.Sorted(maps.Keys(s.kinds)) {
		for o := range s.kinds[kind].all {
			if err := lines.Encode(entry{Type: "put", Kind: kind, ID: text(o, "id"), Object: o}); err != nil {
				return err
			}
		}
	}
	if n.moved > 0 {
		if err := lines.Encode(entry{Type: "clock", Nanos: int64(n.moved)}); err != nil {
			return err
		}
	}
	if _, err := old.Seek(0, io.SeekStart); err != nil {
		return err
	}
	number := 0
	if _, err := eachEntry(old, func(e entry) error {
		number++
		if e.Type == "put" || e.Type == "del" || e.Type == "clock" {
			return nil
		}
		if slices.Contains(overwriting, e.Type) && n.last[e.Type+" "+e.ID] != number {
			return nil
		}
		return lines.Encode(e)
	}); err != nil {
		return err
	}
	return buffer.Flush()
}

func (s *store) persistent() bool { return s.journal != nil }

// log writes an entry, or holds it back between begin and commit.
func (s *store) log(e entry) {
	switch {
	case s.journal == nil:
	case s.holding:
		s.hold(e)
	default:
		s.write(e)
	}
}

// hold keeps an entry until commit. Of several about one object only the last
// counts, at the place of the first: the order of making stays.
func (s *store) hold(e entry) {
	key := e.Kind + " " + e.ID
	if at, stands := s.places[key]; stands && e.Type == "put" {
		s.held[at].Object = e.Object
		return
	}
	switch e.Type {
	case "put":
		if s.places == nil {
			s.places = map[string]int{}
		}
		s.places[key] = len(s.held)
	case "del":
		delete(s.places, key)
	}
	s.held = append(s.held, e)
}

// guard is the server's lock. What is changed under it stands or falls together: a
// process that is killed leaves a call whole or not at all, its idempotency key
// included.
type guard struct {
	mu    sync.Mutex
	store *store
}

// Lock is sync.Locker.
func (g *guard) Lock() {
	g.mu.Lock()
	g.store.begin()
}

// Unlock is sync.Locker.
func (g *guard) Unlock() {
	g.store.commit()
	g.mu.Unlock()
}

// begin holds all entries back until commit.
func (s *store) begin() {
	if s.journal != nil {
		s.holding = true
	}
}

// commit writes what was held back, and tells whether the journal holds all.
func (s *store) commit() bool {
	s.holding = false
	switch len(s.held) {
	case 0:
	case 1:
		s.write(s.held[0])
	default:
		s.write(entry{Type: "all", All: s.held})
	}
	clear(s.held)
	s.held, s.places = s.held[:0], nil
	return s.err == nil
}

// write appends a line. After a failure nothing more is written: a line behind one
// that is torn would never be read.
func (s *store) write(e entry) {
	if s.err != nil {
		return
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = s.journal.Write(append(line, '\n'))
	}
	if err != nil {
		s.err = fmt.Errorf("write the simulator's journal: %w", err)
	}
}

func (s *store) close() error {
	if s.journal == nil {
		return s.err
	}
	return errors.Join(s.err, s.journal.Close())
}
