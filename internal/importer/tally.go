package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tallystick/internal/clock"
)

// noteSuffix is what the file beside the input is called, which says how far it
// has been imported.
const noteSuffix = ".tallystick-import"

// noted is the content of that file.
type noted struct {
	URL         string   `json:"url"`
	CloudEvents bool     `json:"cloudevents"`
	Position    position `json:"position"`
	Summary     Summary  `json:"summary"`
	Rejects     string   `json:"rejects"`       // absolute; "" for none
	RejectBytes int64    `json:"rejects_bytes"` // of it that belong to what is before Position
}

// tally is what an import is done with: counted, the rejected lines written down,
// and noted in a file that is replaced as a whole.
type tally struct {
	Summary
	groups  int // of this run
	path    string
	noted   noted
	rejects *os.File
	saved   clock.Instant
	events  bool
}

// openTally reads what an earlier import of the file has noted, if there is one.
// It changes nothing.
func openTally(o Options) (*tally, noted, error) {
	t := &tally{saved: clock.Tick(), events: o.CloudEvents, noted: noted{URL: o.URL, CloudEvents: o.CloudEvents}}
	if o.Rejects != "" {
		var err error
		if t.noted.Rejects, err = filepath.Abs(o.Rejects); err != nil {
			return nil, noted{}, useErrorf("%v", err)
		}
	}
	var earlier noted
	if o.Path != "-" {
		t.path = o.Path + noteSuffix
		var err error
		if earlier, err = t.readNote(o); err != nil {
			return nil, noted{}, err
		}
	}
	t.Summary, t.noted.Summary, t.noted.Position = earlier.Summary, earlier.Summary, earlier.Position
	return t, earlier, nil
}

// begin opens the file for rejected lines and notes its name: what is in it from
// now on is known to be ours.
func (t *tally) begin(earlier noted) error {
	if err := t.openRejects(earlier); err != nil {
		return err
	}
	if err := t.save(); err != nil {
		return useErrorf("%v", err)
	}
	return nil
}

// readNote reads the note of an earlier import, which is empty where there is
// none. Of one that is to be forgotten only the name of its rejected lines stays.
func (t *tally) readNote(o Options) (noted, error) {
	content, err := os.ReadFile(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return noted{}, nil
	}
	if err != nil {
		return noted{}, useErrorf("%v", err)
	}
	var n noted
	err = json.Unmarshal(content, &n)
	if o.Restart {
		return noted{Rejects: n.Rejects}, nil
	}
	if err != nil {
		return noted{}, useErrorf("%s cannot be read: %v; to begin again use --restart: what is recorded already is not charged again", t.path, err)
	}
	if n.URL != o.URL || n.CloudEvents != o.CloudEvents {
		return noted{}, useErrorf("%s is of an import to %s, cloudevents %t; go on with the same, or begin again with --restart", t.path, n.URL, n.CloudEvents)
	}
	return n, nil
}

// openRejects opens the file for rejected lines. Of an earlier import's it keeps
// what was noted with the position; what came behind that is rejected again. What
// is somebody else's is left alone.
func (t *tally) openRejects(earlier noted) error {
	if t.noted.Rejects == "" {
		return nil
	}
	ours, keep := earlier.Rejects == t.noted.Rejects, int64(0)
	if ours {
		keep = earlier.RejectBytes
	}
	file, err := os.OpenFile(t.noted.Rejects, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return useErrorf("%v", err)
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case info.Size() > 0 && !ours:
		err = useErrorf("%s holds something already; name another file for --rejects, or remove it", t.noted.Rejects)
	case info.Size() < keep:
		err = useErrorf("%s is shorter than an earlier import has left it; begin again with --restart", t.noted.Rejects)
	default:
		if err = file.Truncate(keep); err == nil {
			_, err = file.Seek(keep, 0)
		}
	}
	if err != nil {
		_ = file.Close() // nothing was written
		return useErrorf("%v", err)
	}
	t.rejects, t.noted.RejectBytes = file, keep
	return nil
}

// note counts a group whose lines all have an outcome, writes its rejected lines
// down and, now and then, how far it has come.
func (t *tally) note(g *group) error {
	var rejects bytes.Buffer
	for k := range g.items {
		switch it := &g.items[k]; it.outcome {
		case outcomeRecorded:
			t.Recorded++
		case outcomeReplayed:
			t.Replayed++
		case outcomeRejected:
			t.Rejected++
			line, err := it.rejected(t.events)
			if err != nil {
				return err
			}
			rejects.Write(line)
		case outcomePending:
			return fmt.Errorf("line %d has no outcome: this is a bug", it.line)
		}
	}
	if t.rejects != nil {
		n, err := t.rejects.Write(rejects.Bytes())
		if err != nil {
			return fmt.Errorf("write rejected lines down: %w", err)
		}
		t.noted.RejectBytes += int64(n)
	}
	t.groups++
	t.noted.Position, t.noted.Summary = g.end, t.Summary
	if clock.Since(t.saved) < saveEvery {
		return nil
	}
	return t.save()
}

// save replaces the note. Rejected lines are on disk before it says so.
func (t *tally) save() error {
	t.saved = clock.Tick()
	if t.path == "" {
		return nil
	}
	if t.rejects != nil {
		if err := t.rejects.Sync(); err != nil {
			return fmt.Errorf("write rejected lines down: %w", err)
		}
	}
	content, err := json.Marshal(t.noted)
	if err != nil {
		return fmt.Errorf("note how far the import has come: %w", err)
	}
	if err := replace(t.path, content); err != nil {
		return fmt.Errorf("note how far the import has come: %w", err)
	}
	return nil
}

// replace writes a file as a whole: a crash leaves the old or the new one.
func replace(path string, content []byte) error {
	next, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = next.Write(content)
	if err == nil {
		err = next.Sync()
	}
	if err = errors.Join(err, next.Close()); err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next.Name()))
	}
	return nil
}

func (t *tally) close() error {
	if t.rejects == nil {
		return nil
	}
	return t.rejects.Close()
}

// finish forgets the note: the file is imported whole.
func (t *tally) finish() error {
	if t.rejects != nil {
		if err := t.rejects.Sync(); err != nil {
			return errors.Join(fmt.Errorf("write rejected lines down: %w", err), t.close())
		}
	}
	err := t.close()
	if t.path == "" {
		return err
	}
	if gone := os.Remove(t.path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}
