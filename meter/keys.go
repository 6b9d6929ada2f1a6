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
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/clock"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// Scopes that a key can carry. Admin includes the others.
const (
	ScopeUsage = "usage"
	ScopeRead  = "read"
	ScopeAdmin = "admin"
)

// keyFresh is how long a key is trusted without asking the database again: the
// longest that a revocation elsewhere takes to bite.
const keyFresh = time.Second

// Refusals of keys. Every unusable key gets the same answer.
var (
	errUnauthorized = &fault.Error{Kind: fault.KindUnauthorized, Code: "unauthorized", Public: "send a valid API key as: Authorization: Bearer tsk_…"}
	errForbidden    = &fault.Error{Kind: fault.KindForbidden, Code: "forbidden", Public: "the key lacks the scope that this call needs"}
	errNoKey        = &fault.Error{Kind: fault.KindNotFound, Code: "key_not_found", Public: "there is no such key"}
)

// keyRow is a key as it stands in the database.
type keyRow struct {
	ID        string         `db:"key_id"`
	Name      string         `db:"name"`
	Scopes    pq.StringArray `db:"scopes"`
	Hash      []byte         `db:"secret_hash"`
	CreatedAt time.Time      `db:"created_at"`
	ExpiresAt *time.Time     `db:"expires_at"`
	RevokedAt *time.Time     `db:"revoked_at"`
}

func (k keyRow) wire() api.Key {
	return api.Key{ID: k.ID, Name: k.Name, Scopes: k.Scopes, CreatedAt: k.CreatedAt.UTC(), ExpiresAt: utc(k.ExpiresAt), RevokedAt: utc(k.RevokedAt)}
}

func (k keyRow) allows(scope string) bool {
	return slices.Contains(k.Scopes, scope) || slices.Contains(k.Scopes, ScopeAdmin)
}

// keyCache spares the hot path a query per request.
type keyCache struct {
	mu      sync.Mutex
	entries map[string]keyEntry
}

// keyEntry is a key and when it was read, on the monotonic clock: a virtual
// clock that stands still must not keep a revoked key alive.
type keyEntry struct {
	row  keyRow
	read clock.Instant
}

type actorKey struct{}

// actor names who makes a request, for the journal.
func actor(ctx context.Context) string {
	name, _ := ctx.Value(actorKey{}).(string)
	return name
}

// Authorize lets requests through to h whose key is valid and carries the scope.
func (m *Meter) Authorize(scope string, h web.Handler) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			return errUnauthorized
		}
		key, err := m.lookUp(r.Context(), token)
		if err != nil {
			return err
		}
		web.Note(r.Context(), slog.String("key", key.ID))
		if !key.allows(scope) {
			return errForbidden.Withf("the key lacks the scope %s that this call needs", scope)
		}
		return h(w, r.WithContext(context.WithValue(r.Context(), actorKey{}, "key:"+key.ID)))
	}
}

func (m *Meter) lookUp(ctx context.Context, token string) (keyRow, error) {
	prefix, rest, _ := strings.Cut(token, "_")
	id, _, ok := strings.Cut(rest, "_")
	if prefix != "tsk" || !ok || len(token) > 200 || !meterForm.MatchString(id) {
		return keyRow{}, errUnauthorized
	}
	key, err := m.readKey(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return keyRow{}, errUnauthorized
	}
	if err != nil {
		return keyRow{}, err
	}
	hash := sha256.Sum256([]byte(token))
	now := m.now()
	if subtle.ConstantTimeCompare(hash[:], key.Hash) != 1 || key.RevokedAt != nil || (key.ExpiresAt != nil && !key.ExpiresAt.After(now)) {
		return keyRow{}, errUnauthorized
	}
	return key, nil
}

// sqlReadKey relies on api_keys_pkey.
const sqlReadKey = `SELECT key_id, name, scopes, secret_hash, created_at, expires_at, revoked_at FROM api_keys WHERE key_id = $1`

func (m *Meter) readKey(ctx context.Context, id string) (keyRow, error) {
	m.keys.mu.Lock()
	entry, ok := m.keys.entries[id]
	m.keys.mu.Unlock()
	if ok && clock.Since(entry.read) < keyFresh {
		return entry.row, nil
	}
	entry = keyEntry{read: clock.Tick()}
	err := m.db.Read(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &entry.row, sqlReadKey, id) })
	if err != nil {
		return keyRow{}, err
	}
	m.keys.mu.Lock()
	m.keys.entries[id] = entry
	m.keys.mu.Unlock()
	return entry.row, nil
}

// sqlInsertKey relies on api_keys_pkey.
const sqlInsertKey = `INSERT INTO api_keys (key_id, name, scopes, secret_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)`

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
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return api.Key{}, err
	}
	var random [6 + 32]byte
	_, _ = rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:6])
	secret := "tsk_" + id + "_" + hex.EncodeToString(random[6:])
	hash := sha256.Sum256([]byte(secret))
	row := keyRow{ID: id, Name: q.Name, Scopes: q.Scopes, CreatedAt: m.now(), ExpiresAt: utc(q.ExpiresAt)}
	err := m.db.InTx(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, sqlInsertKey, row.ID, row.Name, row.Scopes, hash[:], row.CreatedAt, row.ExpiresAt)
		return err
	})
	key := row.wire()
	key.Secret = secret
	return key, err
}

// sqlRevokeKey relies on api_keys_pkey.
const sqlRevokeKey = `
	UPDATE api_keys SET revoked_at = coalesce(revoked_at, $2) WHERE key_id = $1
	RETURNING key_id, name, scopes, secret_hash, created_at, expires_at, revoked_at`

// RevokeKey ends a key: at once in this process, within a second elsewhere.
func (m *Meter) RevokeKey(ctx context.Context, id string) (api.Key, error) {
	var row keyRow
	err := m.db.InTx(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &row, sqlRevokeKey, id, m.now()) })
	if errors.Is(err, sql.ErrNoRows) {
		return api.Key{}, errNoKey
	}
	m.keys.mu.Lock()
	delete(m.keys.entries, id)
	m.keys.mu.Unlock()
	return row.wire(), err
}

// sqlListKeys pages over api_keys_pkey.
const sqlListKeys = `
	SELECT key_id, name, scopes, secret_hash, created_at, expires_at, revoked_at
	FROM api_keys WHERE key_id > $1 ORDER BY key_id LIMIT $2`

// ListKeys gives up to limit keys with ids after the given one, without secrets.
func (m *Meter) ListKeys(ctx context.Context, after string, limit int) ([]api.Key, error) {
	var rows []keyRow
	err := m.db.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlListKeys, after, limit)
	})
	keys := make([]api.Key, len(rows))
	for i, row := range rows {
		keys[i] = row.wire()
	}
	return keys, err
}

func (m *Meter) handleCreateKey(w http.ResponseWriter, r *http.Request) error {
	var q api.KeyRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	key, err := m.CreateKey(r.Context(), q)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusCreated, key)
}

func (m *Meter) handleListKeys(w http.ResponseWriter, r *http.Request) error {
	after := ""
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	keys, err := m.ListKeys(r.Context(), after, limit+1)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, web.Paged(keys, limit, func(k api.Key) any { return k.ID }))
}

func (m *Meter) handleRevokeKey(w http.ResponseWriter, r *http.Request) error {
	key, err := m.RevokeKey(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, key)
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

// Works tells whether a key is valid and carries a scope.
func (m *Meter) Works(ctx context.Context, secret, scope string) bool {
	key, err := m.lookUp(ctx, secret)
	return err == nil && key.allows(scope)
}
