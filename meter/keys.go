package meter

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/fault"
)

// Scopes that a key can carry. Admin includes the others.
const (
	ScopeUsage = "usage"
	ScopeRead  = "read"
	ScopeAdmin = "admin"
)

// Bounds of a key.
const (
	overlapDefault = 24 * time.Hour
	overlapMax     = 7 * 24 * time.Hour
	rateMax        = 100_000 // requests per second, and in a burst
)

var (
	errNoKey    = &fault.Error{Kind: fault.KindNotFound, Code: "key_not_found", Public: "there is no such key"}
	errKeyEnded = &fault.Error{Kind: fault.KindConflict, Code: "key_ended", Public: "the key is revoked or has expired; make another with POST /v1/keys"}
	errRotating = &fault.Error{Kind: fault.KindConflict, Code: "rotation_under_way", Public: "the secret before the last rotation still works; wait until previous_expires_at, or rotate with overlap_seconds 0, which ends every older secret at once"}
)

// keyRow is a key as it stands in the database. It is not changed once read.
type keyRow struct {
	ID                string         `db:"key_id"`
	Name              string         `db:"name"`
	Scopes            pq.StringArray `db:"scopes"`
	Hash              []byte         `db:"secret_hash"`
	PreviousHash      []byte         `db:"previous_hash"`
	PreviousExpiresAt *time.Time     `db:"previous_expires_at"`
	RotatedAt         *time.Time     `db:"rotated_at"`
	RatePerSecond     *int           `db:"rate_per_second"`
	RateBurst         *int           `db:"rate_burst"`
	CreatedAt         time.Time      `db:"created_at"`
	ExpiresAt         *time.Time     `db:"expires_at"`
	RevokedAt         *time.Time     `db:"revoked_at"`
}

const keyFields = `key_id, name, scopes, secret_hash, previous_hash, previous_expires_at, rotated_at, rate_per_second, rate_burst,
	created_at, expires_at, revoked_at`

func (k *keyRow) wire(now time.Time) api.Key {
	key := api.Key{
		ID: k.ID, Name: k.Name, Scopes: k.Scopes, RateLimit: k.limit(), CreatedAt: k.CreatedAt.UTC(), ExpiresAt: utc(k.ExpiresAt),
		RevokedAt: utc(k.RevokedAt), RotatedAt: utc(k.RotatedAt),
	}
	if k.overlaps(now) {
		key.PreviousExpiresAt = utc(k.PreviousExpiresAt)
	}
	return key
}

func (k *keyRow) allows(scope string) bool {
	return slices.Contains(k.Scopes, scope) || slices.Contains(k.Scopes, ScopeAdmin)
}

// limit is the key's rate limit, nil for none.
func (k *keyRow) limit() *api.RateLimit {
	if k.RatePerSecond == nil || k.RateBurst == nil {
		return nil
	}
	return &api.RateLimit{PerSecond: *k.RatePerSecond, Burst: *k.RateBurst}
}

func (k *keyRow) setLimit(l *api.RateLimit) {
	k.RatePerSecond, k.RateBurst = nil, nil
	if l != nil {
		k.RatePerSecond, k.RateBurst = &l.PerSecond, &l.Burst
	}
}

// overlaps tells whether the secret before the last rotation still works.
func (k *keyRow) overlaps(now time.Time) bool {
	return k.PreviousExpiresAt != nil && k.PreviousExpiresAt.After(now)
}

func (k *keyRow) ended(now time.Time) bool {
	return k.RevokedAt != nil || (k.ExpiresAt != nil && !k.ExpiresAt.After(now))
}

// verdict is what a key says to a secret.
type verdict int

const (
	verdictWrong verdict = iota // not a secret of the key, or one from before a rotation
	verdictEnded                // its secret, but the key is over
	verdictGood
)

// judge compares a secret's hash with those of the key, in the same time
// whichever it is and whether it is one at all.
func (k *keyRow) judge(hash []byte, now time.Time) verdict {
	current := subtle.ConstantTimeCompare(hash, k.Hash)
	previous := subtle.ConstantTimeCompare(hash, k.PreviousHash)
	switch {
	case current == 0 && (previous == 0 || !k.overlaps(now)):
		return verdictWrong
	case k.ended(now):
		return verdictEnded
	}
	return verdictGood
}

// newSecret makes a secret of 256 random bits for whatever is called so, and the
// hash to store in its place.
func newSecret(prefix, id string) (secret string, hash []byte) {
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	secret = prefix + id + "_" + hex.EncodeToString(random[:])
	sum := sha256.Sum256([]byte(secret))
	return secret, sum[:]
}

// keyPrefix begins every API key.
const keyPrefix = "tsk_"

// sqlInsertKey relies on api_keys_pkey.
const sqlInsertKey = `
	INSERT INTO api_keys (key_id, name, scopes, secret_hash, created_at, expires_at, rate_per_second, rate_burst)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`

// CreateKey makes a key. Its secret is in the answer and nowhere else.
func (m *Meter) CreateKey(ctx context.Context, q api.KeyRequest) (api.Key, error) {
	var p fault.Problems
	if q.Name == "" || len(q.Name) > 200 {
		p.Addf("/name", "must have 1 to 200 characters")
	}
	if len(q.Scopes) == 0 {
		p.Addf("/scopes", "must name at least one of usage, read, admin")
	}
	for i, s := range q.Scopes {
		if s != ScopeUsage && s != ScopeRead && s != ScopeAdmin {
			p.Addf(fmt.Sprintf("/scopes/%d", i), "must be usage, read or admin")
		}
	}
	checkWritable(&p, "/expires_at", q.ExpiresAt)
	if q.ExpiresAt != nil && !q.ExpiresAt.After(m.now()) {
		p.Addf("/expires_at", "must be in the future")
	}
	if q.RateLimit != nil {
		checkLimit(&p, "/rate_limit", *q.RateLimit)
	}
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return api.Key{}, err
	}
	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails
	row := keyRow{ID: hex.EncodeToString(random[:]), Name: q.Name, Scopes: q.Scopes, CreatedAt: m.now(), ExpiresAt: utc(q.ExpiresAt)}
	row.setLimit(q.RateLimit)
	secret, hash := newSecret(keyPrefix, row.ID)
	err := m.db.InTx(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, sqlInsertKey, row.ID, row.Name, row.Scopes, hash, row.CreatedAt, row.ExpiresAt, row.RatePerSecond, row.RateBurst)
		return err
	})
	key := row.wire(m.now())
	key.Secret = secret
	return key, err
}

func checkLimit(p *fault.Problems, pointer string, l api.RateLimit) {
	if l.PerSecond < 1 || l.PerSecond > rateMax {
		p.Addf(pointer+"/per_second", "must be from 1 to %d", rateMax)
	}
	if l.Burst < 1 || l.Burst > rateMax {
		p.Addf(pointer+"/burst", "must be from 1 to %d", rateMax)
	}
}

// sqlLockKey relies on api_keys_pkey and locks the row.
const sqlLockKey = `SELECT ` + keyFields + ` FROM api_keys WHERE key_id = $1 FOR UPDATE`

// sqlChangeKey relies on api_keys_pkey.
const sqlChangeKey = `
	UPDATE api_keys SET secret_hash = $2, previous_hash = $3, previous_expires_at = $4, rotated_at = $5, rate_per_second = $6, rate_burst = $7,
		revoked_at = $8
	WHERE key_id = $1`

// changeKey lets change decide about a key under its lock: at once in this
// process, within a second elsewhere.
func (m *Meter) changeKey(ctx context.Context, id string, change func(row *keyRow, now time.Time) error) (api.Key, error) {
	if !meterForm.MatchString(id) {
		return api.Key{}, errNoKey
	}
	var row keyRow
	now := m.now()
	err := m.db.InTx(ctx, func(tx *sqlx.Tx) error {
		row = keyRow{}
		if err := tx.GetContext(ctx, &row, sqlLockKey, id); err != nil {
			return err
		}
		if err := change(&row, now); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, sqlChangeKey, row.ID, row.Hash, row.PreviousHash, row.PreviousExpiresAt, row.RotatedAt, row.RatePerSecond,
			row.RateBurst, row.RevokedAt)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return api.Key{}, errNoKey
	}
	m.keys.outdate(id) // also after an error: a commit's may have been carried out
	return row.wire(now), err
}

// RevokeKey ends a key. Ending one twice changes nothing.
func (m *Meter) RevokeKey(ctx context.Context, id string) (api.Key, error) {
	return m.changeKey(ctx, id, func(row *keyRow, now time.Time) error {
		if row.RevokedAt == nil {
			row.RevokedAt = &now
		}
		return nil
	})
}

// RotateKey gives a key a new secret, which is in the answer and nowhere else.
// The old one works for the overlap, so that at most two do. While two do, only
// a rotation without overlap is taken: any other would have to end a secret that
// somebody may be using.
func (m *Meter) RotateKey(ctx context.Context, id string, q api.RotateRequest) (api.Key, error) {
	overlap := overlapDefault
	if q.OverlapSeconds != nil {
		if *q.OverlapSeconds < 0 || *q.OverlapSeconds > int(overlapMax/time.Second) {
			var p fault.Problems
			p.Addf("/overlap_seconds", "must be from 0 to %d", int(overlapMax/time.Second))
			return api.Key{}, p.Err(fault.ErrUnprocessed)
		}
		overlap = time.Duration(*q.OverlapSeconds) * time.Second
	}
	secret, hash := newSecret(keyPrefix, id)
	key, err := m.changeKey(ctx, id, func(row *keyRow, now time.Time) error {
		if row.ended(now) {
			return errKeyEnded
		}
		if overlap > 0 && row.overlaps(now) {
			return errRotating.WithExtra("previous_expires_at", row.PreviousExpiresAt.UTC())
		}
		row.PreviousHash, row.PreviousExpiresAt = nil, nil
		if overlap > 0 {
			end := now.Add(overlap)
			row.PreviousHash, row.PreviousExpiresAt = row.Hash, &end
		}
		row.Hash, row.RotatedAt = hash, &now
		return nil
	})
	if err != nil {
		return api.Key{}, err
	}
	key.Secret = secret
	return key, nil
}

// LimitKey changes what a key may send; nil lifts the limit.
func (m *Meter) LimitKey(ctx context.Context, id string, l *api.RateLimit) (api.Key, error) {
	if l != nil {
		var p fault.Problems
		checkLimit(&p, "", *l)
		if err := p.Err(fault.ErrUnprocessed); err != nil {
			return api.Key{}, err
		}
	}
	return m.changeKey(ctx, id, func(row *keyRow, _ time.Time) error {
		row.setLimit(l)
		return nil
	})
}

// sqlListKeys pages over api_keys_pkey.
const sqlListKeys = `SELECT ` + keyFields + ` FROM api_keys WHERE key_id > $1 ORDER BY key_id LIMIT $2`

// ListKeys gives up to limit keys with ids after the given one, without secrets.
func (m *Meter) ListKeys(ctx context.Context, after string, limit int) ([]api.Key, error) {
	var rows []keyRow
	err := m.db.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlListKeys, after, limit)
	})
	keys := make([]api.Key, len(rows))
	for i := range rows {
		keys[i] = rows[i].wire(m.now())
	}
	return keys, err
}

// checkWritable refuses a time that has five digits of a year in UTC: RFC 3339 has
// four, so no answer could hold it.
func checkWritable(p *fault.Problems, pointer string, t *time.Time) {
	if t != nil && t.UTC().Year() > 9999 {
		p.Addf(pointer, "must be before the year 10000 in UTC")
	}
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC().Truncate(time.Microsecond)
	return &u
}
