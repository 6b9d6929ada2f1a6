package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tallystick/api"
)

// Sizes of a spool.
const (
	spoolBytesDefault = 64 << 20
	segmentBytesMax   = 1 << 20
	entryBytesMax     = 64 << 10 // no request of ours comes near it
)

// Names within a spool's directory.
const (
	segmentSuffix = ".spool"
	deadName      = "dead.jsonl"
	lockName      = "lock"
)

// Spool keeps on disk what could not be sent: see FailOpen. One process at a time has
// a spool's directory. It is safe for concurrent use.
//
// What is written is on disk, checksummed, before the call that it is about returns;
// a process that is killed loses nothing of it, and the next one that opens the spool
// sends it, with the id and the time that it had. Sent twice is recorded once: ids say
// so. What tallystick refuses for good is appended to dead.jsonl and handed to OnDead;
// it is never dropped.
type Spool struct {
	dir      string
	bytesMax int64
	onDead   func(DeadLetter)
	unlock   func() error
	wake     chan struct{} // holds a token when there may be something to send
	kick     chan struct{} // Drain's request not to wait

	mu       sync.Mutex
	segments []segment // oldest first; the last may be open
	open     *os.File  // nil: none
	next     uint64    // number of the segment that is made next
	size     int64     // of all segments and the dead letters
	promised int64
	closed   bool
}

type segment struct {
	name string
	size int64
}

// SpoolOptions change what OpenSpool does.
type SpoolOptions struct {
	BytesMax int64            // 64 MiB by default; a full spool lets no call through
	OnDead   func(DeadLetter) // is told what was refused for good; it must not block
}

// DeadLetter is a request that tallystick has refused for good, or a line of a spool
// that cannot be read. After a crash the same one may come twice.
type DeadLetter struct {
	At      time.Time       `json:"at"`
	ID      string          `json:"id"`
	Account string          `json:"account"`
	Ending  string          `json:"ending"` // capture, release, doubt or usage
	Path    string          `json:"path"`   // of the API
	Body    json.RawMessage `json:"body,omitempty"`
	Line    string          `json:"line,omitempty"` // what could not be read
	Code    string          `json:"code"`
	Detail  string          `json:"detail"`
}

// entry is one request on disk.
type entry struct {
	ID        string          `json:"id"`
	Account   string          `json:"account"`
	Ending    string          `json:"ending"`
	Path      string          `json:"path"`
	Body      json.RawMessage `json:"body"`
	First     string          `json:"first,omitempty"`      // to be sent before; without a body its refusal does not matter
	FirstBody json.RawMessage `json:"first_body,omitempty"` //
}

func usageEntry(u api.UsageRequest) entry {
	body, _ := json.Marshal(u) // texts and a time always encode
	return entry{ID: u.ID, Account: u.Account, Ending: "usage", Path: pathUsage, Body: body}
}

// OpenSpool opens the spool in a directory, which it makes where there is none. It is
// refused while another process has it open.
func OpenSpool(dir string, o SpoolOptions) (*Spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("open the spool in %s: %w", dir, err)
	}
	s := &Spool{dir: dir, bytesMax: o.BytesMax, onDead: o.OnDead, unlock: unlock, wake: make(chan struct{}, 1), kick: make(chan struct{})}
	if s.bytesMax <= 0 {
		s.bytesMax = spoolBytesDefault
	}
	if s.onDead == nil {
		s.onDead = func(DeadLetter) {}
	}
	if err := s.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("open the spool in %s: %w", dir, err), unlock())
	}
	s.wakeUp()
	return s, nil
}

// scan finds what an earlier process has left. Its segments are never appended to: a
// line that its death has torn stays the last of its file.
func (s *Spool) scan() error {
	files, err := os.ReadDir(s.dir) // sorted by name, which is by age
	if err != nil {
		return err
	}
	for _, file := range files {
		number, isSegment := strings.CutSuffix(file.Name(), segmentSuffix)
		if !isSegment && file.Name() != deadName {
			continue
		}
		info, err := file.Info()
		if err != nil {
			return err
		}
		s.size += info.Size()
		if !isSegment {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return fmt.Errorf("%s is no segment of a spool", file.Name())
		}
		s.next = max(s.next, n+1)
		s.segments = append(s.segments, segment{file.Name(), info.Size()})
	}
	return nil
}

// Close lets another process have the spool. What is in it stays.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.retire(), s.unlock())
}

// Bytes is how much is on disk, dead letters included.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// Empty tells whether everything was sent.
func (s *Spool) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.segments) == 0
}

func (s *Spool) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// promise keeps room for one entry, so that no call is made that could not be
// accounted for. The cause is why it is needed.
func (s *Spool) promise(cause error) (room int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.size+s.promised+entryBytesMax > s.bytesMax {
		return 0, s.full(cause)
	}
	s.promised += entryBytesMax
	return entryBytesMax, nil
}

// full is why nothing more is taken, and why that matters.
func (s *Spool) full(cause error) error {
	if s.closed {
		return errors.Join(os.ErrClosed, cause)
	}
	return errors.Join(fmt.Errorf("%w: %d of %d bytes in %s are taken", ErrSpoolFull, s.size+s.promised, s.bytesMax, s.dir), cause)
}

func (s *Spool) forget(room int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promised -= room
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// line is an entry as it stands on disk: checksum, blank, JSON, end of line.
func (e *entry) line() ([]byte, error) {
	content, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode for the spool: %w", err)
	}
	if len(content) > entryBytesMax-16 {
		return nil, fmt.Errorf("a request of %d bytes is too large for the spool", len(content))
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(content, castagnoli), content), nil
}

var errTorn = errors.New("the checksum does not fit")

func parseLine(line []byte) (e entry, err error) {
	sum, content, found := bytes.Cut(line, []byte(" "))
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil || !found || len(sum) != 8 || uint64(crc32.Checksum(content, castagnoli)) != want {
		return e, errTorn
	}
	return e, json.Unmarshal(content, &e)
}

// put writes an entry. When it returns nil, the entry survives the process and the
// machine. The cause is why it could not be sent.
func (s *Spool) put(e entry, cause error) error {
	line, err := e.line()
	if err != nil {
		return errors.Join(err, cause)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.size+s.promised+int64(len(line)) > s.bytesMax {
		return s.full(cause)
	}
	if err := s.append(line); err != nil {
		return errors.Join(fmt.Errorf("write to the spool: %w", err), cause)
	}
	s.wakeUp()
	return nil
}

// append needs mu. After any error the segment is left as it is, for good: what is
// torn stays at its end.
func (s *Spool) append(line []byte) error {
	if s.open == nil {
		if err := s.begin(); err != nil {
			return err
		}
	}
	last := &s.segments[len(s.segments)-1]
	n, err := s.open.Write(line)
	last.size += int64(n)
	s.size += int64(n)
	if err == nil {
		err = s.open.Sync()
	}
	if err != nil || last.size >= segmentBytesMax {
		return errors.Join(err, s.retire())
	}
	return nil
}

// begin makes a segment, and its name durable. It needs mu.
func (s *Spool) begin() error {
	name := fmt.Sprintf("%020d%s", s.next, segmentSuffix)
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	s.next++
	s.open, s.segments = f, append(s.segments, segment{name: name})
	return s.syncDir()
}

// retire closes the open segment. It needs mu.
func (s *Spool) retire() error {
	if s.open == nil {
		return nil
	}
	err := s.open.Close()
	s.open = nil
	return err
}

func (s *Spool) syncDir() error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// waiting gives the segments that can be sent; nothing is appended to them any more.
func (s *Spool) waiting() ([]segment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.segments), s.retire()
}

// read gives the entries of a segment, and the lines that are none. A last line
// without its end was torn by a crash before its writer knew of it: it never counted.
func (s *Spool) read(g segment) (entries []entry, broken []string, err error) {
	content, err := os.ReadFile(filepath.Join(s.dir, g.name))
	if err != nil {
		return nil, nil, err
	}
	for len(content) > 0 {
		line, rest, ended := bytes.Cut(content, []byte("\n"))
		content = rest
		e, err := parseLine(line)
		switch {
		case err == nil && ended:
			entries = append(entries, e)
		case ended:
			broken = append(broken, string(line))
		}
	}
	return entries, broken, nil
}

// drop removes a segment of which everything is settled.
func (s *Spool) drop(g segment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(filepath.Join(s.dir, g.name)); err != nil {
		return err
	}
	i := slices.IndexFunc(s.segments, func(other segment) bool { return other.name == g.name })
	s.size -= s.segments[i].size
	s.segments = slices.Delete(s.segments, i, i+1)
	return s.syncDir()
}

// bury keeps what was refused for good.
func (s *Spool) bury(e entry, refusal *Error, at time.Time) error {
	return s.buried(DeadLetter{
		At: at.UTC(), ID: e.ID, Account: e.Account, Ending: e.Ending, Path: e.Path, Body: e.Body, Code: refusal.Code, Detail: refusal.Error(),
	})
}

func (s *Spool) buried(d DeadLetter) error {
	content, err := json.Marshal(d)
	if err == nil {
		err = s.appendDead(append(content, '\n'))
	}
	s.onDead(d) // also where the file did not take it: two ways are better than one
	if err != nil {
		return fmt.Errorf("write a dead letter: %w", err)
	}
	return nil
}

// appendDead goes beyond the spool's bound rather than lose something; what it takes
// counts, so that a spool with many dead letters is full.
func (s *Spool) appendDead(line []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(s.dir, deadName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	n, err := f.Write(line)
	s.size += int64(n)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), s.syncDir())
}
