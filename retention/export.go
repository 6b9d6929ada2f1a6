package retention

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

// sumsName is the file with the hashes of all exports of a directory, as
// sha256sum writes and checks it.
const sumsName = "SHA256SUMS"

// usage is one row of the table.
type usage struct {
	Part            int16           `db:"part"`
	Account         string          `db:"account"`
	ID              string          `db:"usage_id"`
	Meter           string          `db:"meter"`
	Quantity        credit.Quantity `db:"quantity"`
	Credits         credit.Amount   `db:"credits"`
	RateVersion     int             `db:"rate_version"`
	Staged          credit.Quantity `db:"staged"`
	Dimensions      string          `db:"dimensions"`
	OccurredAt      time.Time       `db:"occurred_at"`
	RecordedAt      time.Time       `db:"recorded_at"`
	Fingerprint     []byte          `db:"fingerprint"`
	TransferVersion int64           `db:"transfer_version"`
	Available       credit.Amount   `db:"available_after"`
	Held            credit.Amount   `db:"held_after"`
	Debt            credit.Amount   `db:"debt_after"`
}

// line is one usage in an export. Its fields are documented in docs/retention.md.
type line struct {
	ID          string          `json:"id"`
	Account     string          `json:"account"`
	Part        int16           `json:"part"`
	Meter       string          `json:"meter"`
	Quantity    string          `json:"quantity"`
	Credits     string          `json:"credits"`
	RateVersion int             `json:"rate_version"`
	Staged      string          `json:"staged"`
	Dimensions  json.RawMessage `json:"dimensions"`
	OccurredAt  time.Time       `json:"occurred_at"`
	RecordedAt  time.Time       `json:"recorded_at"`
	Fingerprint string          `json:"fingerprint"`
	Balance     balance         `json:"balance"`
}

// balance is what the usage left behind.
type balance struct {
	Available string `json:"available"`
	Held      string `json:"held"`
	Debt      string `json:"debt"`
	Version   int64  `json:"version"` // that of its transfer
}

// write puts the row into an export: always the same bytes for the same row.
func (u *usage) write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(line{
		ID: u.ID, Account: u.Account, Part: u.Part, Meter: u.Meter, Quantity: u.Quantity.String(), Credits: u.Credits.String(), RateVersion: u.RateVersion,
		Staged: u.Staged.String(), Dimensions: json.RawMessage(u.Dimensions), OccurredAt: u.OccurredAt.UTC(), RecordedAt: u.RecordedAt.UTC(),
		Fingerprint: hex.EncodeToString(u.Fingerprint),
		Balance:     balance{Available: u.Available.String(), Held: u.Held.String(), Debt: u.Debt.String(), Version: u.TransferVersion},
	})
}

// sqlUsageOfMonth reads one partition in the order of its usage_pkey, so that an
// export of the same rows is the same.
const sqlUsageOfMonth = `
	SELECT part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint, transfer_version,
		available_after, held_after, debt_after
	FROM usage
	WHERE recorded_at >= $1 AND recorded_at < $2
	ORDER BY part, account, transfer_version`

// each calls fn with every usage of the month, one row in memory at a time.
func (m month) each(ctx context.Context, tx *sqlx.Tx, fn func(u *usage) error) error {
	rows, err := tx.QueryxContext(ctx, sqlUsageOfMonth, m.from, m.until)
	if err != nil {
		return fmt.Errorf("read the usage of %s: %w", m, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var u usage
		if err := rows.StructScan(&u); err != nil {
			return fmt.Errorf("read the usage of %s: %w", m, err)
		}
		if err := fn(&u); err != nil {
			return err
		}
	}
	return rows.Err()
}

// export writes the month's file, unless it is there: then it was written by an
// earlier run, and is compared like a new one. The file gets its name when it is
// whole and on the disk.
func (a *Archiver) export(ctx context.Context, tx *sqlx.Tx, m month) (err error) {
	path := filepath.Join(a.Dir, m.file())
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	partial := path + ".partial"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closed(f)) }()
	buffer := bufio.NewWriterSize(f, 1<<20)
	packed := gzip.NewWriter(buffer)
	step := a.progress(m, "export")
	if err := m.each(ctx, tx, func(u *usage) error { step(); return u.write(packed) }); err != nil {
		return err
	}
	if err := errors.Join(packed.Close(), buffer.Flush(), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", partial, err)
	}
	if err := os.Rename(partial, path); err != nil {
		return err
	}
	return syncDir(a.Dir)
}

// closed closes a file that may have been closed before.
func closed(f *os.File) error {
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// DifferError says that an export is not what the database holds.
type DifferError struct {
	Path string
	Line int64 // the first that differs, from 1
}

// Error says what to do.
func (e *DifferError) Error() string {
	return fmt.Sprintf("%s differs from the database at line %d: it belongs to another database, or was changed; nothing was archived; "+
		"name another directory with --out, or move the file away", e.Path, e.Line)
}

// compare reads the month's file back from the disk and holds it against the
// table, line by line. It gives the sums of both and the file's hash.
func (a *Archiver) compare(ctx context.Context, tx *sqlx.Tx, m month) (s sums, err error) {
	path := filepath.Join(a.Dir, m.file())
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	source := bufio.NewReaderSize(io.TeeReader(f, hash), 1<<20)
	packed, err := gzip.NewReader(source)
	if err != nil {
		return s, errors.Join(&DifferError{path, 1}, err)
	}
	lines := bufio.NewReaderSize(packed, 1<<20)
	step := a.progress(m, "compare")
	var want bytes.Buffer
	err = m.each(ctx, tx, func(u *usage) error {
		step()
		want.Reset()
		if err := u.write(&want); err != nil {
			return err
		}
		got, err := lines.ReadBytes('\n')
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			return errors.Join(&DifferError{path, s.usages + 1}, err)
		}
		s.add(u)
		return nil
	})
	if err != nil {
		return s, err
	}
	if rest, err := io.Copy(io.Discard, lines); rest > 0 || err != nil {
		return s, errors.Join(&DifferError{path, s.usages + 1}, err)
	}
	if _, err := io.Copy(io.Discard, source); err != nil { // the hash is of the whole file
		return s, err
	}
	s.sha256 = hash.Sum(nil)
	return s, a.writeSums(m.file(), s.sha256)
}

// writeSums notes the hash of one file in SHA256SUMS and keeps those of others.
func (a *Archiver) writeSums(name string, hash []byte) error {
	path := filepath.Join(a.Dir, sumsName)
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entry := hex.EncodeToString(hash) + "  " + name
	lines := strings.Fields(strings.ReplaceAll(string(content), "  ", "\x00"))
	if slices.Contains(lines, strings.ReplaceAll(entry, "  ", "\x00")) {
		return nil
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasSuffix(l, "\x00"+name) })
	lines = append(lines, strings.ReplaceAll(entry, "  ", "\x00"))
	slices.SortFunc(lines, func(x, y string) int {
		return strings.Compare(x[strings.Index(x, "\x00")+1:], y[strings.Index(y, "\x00")+1:])
	})
	text := strings.ReplaceAll(strings.Join(lines, "\n"), "\x00", "  ") + "\n"
	f, err := os.OpenFile(path+".partial", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".partial", path); err != nil {
		return err
	}
	return syncDir(a.Dir)
}
