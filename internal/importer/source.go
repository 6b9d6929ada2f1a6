package importer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// position is how far a file is done with, in bytes as they are after
// decompression, and SHA-256 of all that stands before it: a file that has been
// changed or exchanged is not gone on with.
type position struct {
	Offset int64  `json:"offset"`
	Line   int64  `json:"line"`
	SHA256 string `json:"sha256"`
}

// source reads lines.
type source struct {
	file   *os.File // nil: somebody else's reader
	size   int64
	stored counter // of the bytes of the file
	lines  *bufio.Reader
	hash   hash.Hash
	at     position
	failed error // what ended the reading
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n atomic.Int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

const errChanged = "%s is not the file that the import began with, or has been changed since; " +
	"to import what it holds now use --restart: what is recorded already is not charged again"

// openSource opens the file and reads up to from.
func openSource(o Options, from position) (*source, error) {
	s := &source{hash: sha256.New(), stored: counter{r: o.Input}}
	if o.Path != "-" {
		file, err := os.Open(o.Path)
		if err != nil {
			return nil, useErrorf("%v", err)
		}
		s.file, s.stored.r = file, file
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			s.size = info.Size()
		}
	}
	var r io.Reader = &s.stored
	if strings.HasSuffix(o.Path, ".gz") {
		unzipped, err := gzip.NewReader(bufio.NewReaderSize(r, 1<<16))
		if err != nil {
			s.close()
			return nil, useErrorf("%s cannot be decompressed: %v", o.Path, err)
		}
		r = unzipped
	}
	n, err := io.CopyN(s.hash, r, from.Offset)
	if err != nil && !errors.Is(err, io.EOF) {
		s.close()
		return nil, useErrorf("read %s: %v", o.Path, err)
	}
	s.at = position{Offset: n, Line: from.Line, SHA256: s.sum()}
	if from.Offset > 0 && (n < from.Offset || s.at.SHA256 != from.SHA256) {
		s.close()
		return nil, useErrorf(errChanged, o.Path)
	}
	s.lines = bufio.NewReaderSize(r, 1<<16)
	return s, nil
}

func (s *source) close() {
	if s.file != nil {
		_ = s.file.Close() // was only read
	}
}

func (s *source) sum() string { return hex.EncodeToString(s.hash.Sum(nil)) }

// group reads the lines of one request, nil at the end. Blank lines are passed
// over; a line that no server could take is rejected at once.
func (s *source) group(number, batch int, events bool) (*group, error) {
	g := &group{number: number}
	size := 0
	for size < groupBytesMax && len(g.items) < batch && s.failed == nil {
		text, long, err := s.line()
		s.failed = err
		if len(text) == 0 && !long {
			continue
		}
		size += len(text)
		g.items = append(g.items, check(item{line: s.at.Line, text: text}, long, events))
	}
	if len(g.items) == 0 && s.failed != nil {
		if errors.Is(s.failed, io.EOF) {
			return nil, nil //nolint:nilnil // the end of the file, like a closed channel
		}
		return nil, useErrorf("behind line %d the file cannot be read: %v", s.at.Line, s.failed)
	}
	s.at.SHA256 = s.sum()
	g.end, g.bytes = s.at, s.stored.n.Load()
	return g, nil
}

// line reads a line without its end and the blanks around it. Of one that is too
// long its begin is given.
func (s *source) line() (text []byte, long bool, err error) {
	for {
		chunk, err := s.lines.ReadSlice('\n')
		_, _ = s.hash.Write(chunk) // never fails
		s.at.Offset += int64(len(chunk))
		if room := lineMax + len("\r\n") - len(text); len(chunk) > room {
			chunk, long = chunk[:room], true
		}
		text = append(text, chunk...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == nil || len(text) > 0 {
			s.at.Line++
		}
		if s.at.Line == 1 {
			text = bytes.TrimPrefix(text, []byte("\ufeff"))
		}
		text = bytes.TrimSpace(text)
		return text, long || len(text) > lineMax, err
	}
}

var errLineTooLong = web.ErrTooLarge.Withf("the line is longer than %d bytes", lineMax)

// check rejects a line that is too long, or that would make the whole request
// unreadable: by the decoder of the server itself.
func check(it item, long, events bool) item {
	var err error
	switch {
	case long:
		err = errLineTooLong
	case events:
		var e jsontext.Value
		err = web.DecodeBytes(it.text, &e)
	default:
		var u api.UsageRequest
		err = web.DecodeBytes(it.text, &u)
	}
	if err != nil {
		it.reject(problemOf(err))
	}
	return it
}

func (it *item) reject(problem []byte) {
	it.outcome, it.problem = outcomeRejected, problem
}

func problemOf(err error) []byte {
	_, members := web.Problem("", err)
	problem, err := json.Marshal(members)
	if err != nil {
		return []byte(`{}`) // texts and numbers: cannot happen
	}
	return problem
}

// reject is a line of the file of what was rejected.
type reject struct {
	Line    int64           `json:"line"`
	Problem json.RawMessage `json:"problem"`
	Usage   json.RawMessage `json:"usage,omitempty"`
	Event   json.RawMessage `json:"event,omitempty"`
	Text    string          `json:"text,omitempty"` // the begin of what is no JSON
}

func (it *item) rejected(events bool) ([]byte, error) {
	r := reject{Line: it.line, Problem: it.problem}
	switch {
	case len(it.text) > lineMax || !json.Valid(it.text) || !utf8.Valid(it.text):
		r.Text = fault.Text(string(it.text))
	case events:
		r.Event = it.text
	default:
		r.Usage = it.text
	}
	line, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write line %d down: %w", it.line, err)
	}
	return append(line, '\n'), nil
}
