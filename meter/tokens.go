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
	"net/netip"
	"time"

	"github.com/jmoiron/sqlx"
	xrate "golang.org/x/time/rate"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
	"tallystick/ledger"
)

// Bounds of the tokens of an account.
const (
	tokenTTLMax  = 24 * time.Hour
	tokensMax    = 1000 // that are valid at a time
	tokenKept    = 7 * 24 * time.Hour
	ownPerSecond = 10 // requests with all tokens of an account together: strangers hold them
	ownBurst     = 100
	ownersMax    = 16_384 // accounts whose requests are counted
)

// tokenPrefix begins every token of an account.
const tokenPrefix = "tat_"

var (
	errNoToken       = &fault.Error{Kind: fault.KindNotFound, Code: "token_not_found", Public: "the account has no such token"}
	errTooManyTokens = &fault.Error{Kind: fault.KindConflict, Code: "too_many_tokens", Public: fmt.Sprintf("the account has %d valid tokens, the most it can have; use one of them, revoke some, or choose shorter times", tokensMax)}
)

type tokenRow struct {
	Part      int16      `db:"part"`
	ID        string     `db:"token_id"`
	Account   string     `db:"account"`
	Name      string     `db:"name"`
	Hash      []byte     `db:"secret_hash"`
	CreatedAt time.Time  `db:"created_at"`
	ExpiresAt time.Time  `db:"expires_at"`
	RevokedAt *time.Time `db:"revoked_at"`
}

const tokenColumns = `part, token_id, account, name, secret_hash, created_at, expires_at, revoked_at`

func (t tokenRow) wire() api.Token {
	return api.Token{ID: t.ID, Account: t.Account, Name: t.Name, CreatedAt: t.CreatedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(), RevokedAt: utc(t.RevokedAt)}
}

// partOf is the part that a token's id begins with.
func partOf(id string) (int16, bool) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != 8 {
		return 0, false
	}
	return int16(raw[0]), true
}

// sqlReadToken relies on account_tokens_pkey.
const sqlReadToken = `SELECT ` + tokenColumns + ` FROM account_tokens WHERE part = $1 AND token_id = $2`

// admitToken lets a token through to its own account. Tokens are not cached: one
// that is revoked ends at once, everywhere.
func (m *Meter) admitToken(own bool, r *http.Request, secret string, from netip.Prefix) (*http.Request, error) {
	ctx := r.Context()
	row, err := m.lookUpToken(ctx, secret, from)
	if err != nil {
		return nil, err
	}
	web.Note(ctx, slog.String("token", row.ID), slog.String("account", row.Account))
	c := &caller{actor: "token:" + row.ID, account: row.Account, limiter: m.owner(row.Account), limit: api.RateLimit{PerSecond: ownPerSecond, Burst: ownBurst}}
	if err := c.take(m.now(), 1, 1); err != nil {
		return nil, err
	}
	if !own {
		return nil, errOwnOnly
	}
	return confine(r.WithContext(context.WithValue(ctx, callerKey{}, c)), row.Account)
}

func (m *Meter) lookUpToken(ctx context.Context, secret string, from netip.Prefix) (row tokenRow, err error) {
	id, ok := parseSecret(tokenPrefix, secret)
	part, fits := partOf(id)
	if !ok || !fits {
		return row, m.failures.refuse(&from)
	}
	leave, err := m.failures.queue(ctx, &from)
	if err != nil {
		return row, err
	}
	defer leave()
	err = m.db.Read(ctx, func(tx *sqlx.Tx) error {
		row = tokenRow{}
		return tx.GetContext(ctx, &row, sqlReadToken, part, id)
	})
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return row, fmt.Errorf("look a token up: %w", err)
	}
	hash := sha256.Sum256([]byte(secret)) // without a row it is compared with nothing, which is no match
	if subtle.ConstantTimeCompare(hash[:], row.Hash) != 1 || row.RevokedAt != nil || !row.ExpiresAt.After(m.now()) {
		return row, m.failures.refuse(&from)
	}
	return row, nil
}

// owner is the limiter of all tokens of an account.
func (m *Meter) owner(account string) *xrate.Limiter {
	if limiter, ok := m.owners.Get(account); ok {
		return limiter
	}
	limiter := xrate.NewLimiter(ownPerSecond, ownBurst)
	if first, found, _ := m.owners.PeekOrAdd(account, limiter); found {
		return first
	}
	return limiter
}

// confine makes a request be about the account, or refuses one that names
// another: in the same words as one that is not there. Routes without an account
// in their path take it from the query, so it is said there for them.
func confine(r *http.Request, account string) (*http.Request, error) {
	if named := r.PathValue("account"); named != "" {
		if named != account {
			return nil, ledger.ErrNoAccount
		}
		return r, nil
	}
	query := r.URL.Query()
	for _, named := range query["account"] {
		if named != account && named != "" {
			if r.PathValue("id") != "" {
				return nil, errNoReservation
			}
			return nil, ledger.ErrNoAccount
		}
	}
	query.Set("account", account)
	u := *r.URL
	u.RawQuery = query.Encode()
	r.URL = &u // of a request that is ours
	return r, nil
}

// sqlCountTokens relies on account_tokens_by_account.
const sqlCountTokens = `SELECT count(*) FROM account_tokens WHERE part = $1 AND account = $2 AND expires_at > $3 AND revoked_at IS NULL`

// sqlForgetTokens relies on account_tokens_by_account.
const sqlForgetTokens = `DELETE FROM account_tokens WHERE part = $1 AND account = $2 AND expires_at <= $3`

// sqlInsertToken relies on account_tokens_pkey.
const sqlInsertToken = `
	INSERT INTO account_tokens (part, token_id, account, name, secret_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`

// CreateToken makes a token with which an account reads itself. Its secret is in
// the answer and nowhere else. Tokens that ended a week ago go with it, so that
// an account keeps no more than it uses; two made at once may exceed the bound.
func (m *Meter) CreateToken(ctx context.Context, account string, q api.TokenRequest) (api.Token, error) {
	var p fault.Problems
	if len(q.Name) > 200 {
		p.Addf("/name", "must have at most 200 bytes")
	}
	if q.TTLSeconds < 1 || q.TTLSeconds > int(tokenTTLMax/time.Second) {
		p.Addf("/ttl_seconds", "must be from 1 to %d", int(tokenTTLMax/time.Second))
	}
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return api.Token{}, err
	}
	ref, now := ledger.RefOf(account), m.now()
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	random[0] = byte(ref.Part)  //nolint:gosec // a part is 0 to 255
	row := tokenRow{Part: ref.Part, ID: hex.EncodeToString(random[:]), Account: account, Name: q.Name, CreatedAt: now, ExpiresAt: now.Add(time.Duration(q.TTLSeconds) * time.Second)}
	secret, hash := newSecret(tokenPrefix, row.ID)
	err := m.db.InTx(ctx, func(tx *sqlx.Tx) error {
		if _, err := ledger.ReadAccount(ctx, tx, ref); err != nil {
			return err
		}
		var valid int
		if err := tx.GetContext(ctx, &valid, sqlCountTokens, ref.Part, account, now); err != nil {
			return err
		}
		if valid >= tokensMax {
			return errTooManyTokens
		}
		if _, err := tx.ExecContext(ctx, sqlForgetTokens, ref.Part, account, now.Add(-tokenKept)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, sqlInsertToken, row.Part, row.ID, row.Account, row.Name, hash, row.CreatedAt, row.ExpiresAt)
		return err
	})
	if err != nil {
		return api.Token{}, err
	}
	token := row.wire()
	token.Secret = secret
	return token, nil
}

// sqlRevokeToken relies on account_tokens_pkey.
const sqlRevokeToken = `
	UPDATE account_tokens SET revoked_at = coalesce(revoked_at, $4) WHERE part = $1 AND token_id = $2 AND account = $3
	RETURNING ` + tokenColumns

// RevokeToken ends a token of an account, at once and everywhere.
func (m *Meter) RevokeToken(ctx context.Context, account, id string) (api.Token, error) {
	var row tokenRow
	ref := ledger.RefOf(account)
	err := m.db.InTx(ctx, func(tx *sqlx.Tx) error {
		if _, err := ledger.ReadAccount(ctx, tx, ref); err != nil {
			return err
		}
		return tx.GetContext(ctx, &row, sqlRevokeToken, ref.Part, id, account, m.now())
	})
	if errors.Is(err, sql.ErrNoRows) {
		return api.Token{}, errNoToken
	}
	return row.wire(), err
}

// tokenPlace is where a page of tokens ends.
type tokenPlace struct {
	ExpiresAt time.Time
	ID        string
}

// sqlListTokens pages backwards over account_tokens_by_account.
const sqlListTokens = `
	SELECT ` + tokenColumns + ` FROM account_tokens
	WHERE part = $1 AND account = $2 AND (expires_at, token_id) < ($3, $4)
	ORDER BY expires_at DESC, token_id DESC LIMIT $5`

func (m *Meter) handleListTokens(w http.ResponseWriter, r *http.Request) error {
	below := tokenPlace{ExpiresAt: farFuture}
	limit, err := web.Page(r, &below)
	if err != nil {
		return err
	}
	ref := ledger.RefOf(r.PathValue("account"))
	var rows []tokenRow
	err = m.db.Read(r.Context(), func(tx *sqlx.Tx) error {
		rows = nil
		if _, err := ledger.ReadAccount(r.Context(), tx, ref); err != nil {
			return err
		}
		return tx.SelectContext(r.Context(), &rows, sqlListTokens, ref.Part, ref.Account, below.ExpiresAt, below.ID, limit+1)
	})
	if err != nil {
		return err
	}
	tokens := make([]api.Token, len(rows))
	for i, row := range rows {
		tokens[i] = row.wire()
	}
	return web.JSON(w, http.StatusOK, web.Paged(tokens, limit, func(t api.Token) any { return tokenPlace{t.ExpiresAt, t.ID} }))
}

func (m *Meter) handleCreateToken(w http.ResponseWriter, r *http.Request) error {
	var q api.TokenRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	token, err := m.CreateToken(r.Context(), r.PathValue("account"), q)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusCreated, token)
}

func (m *Meter) handleRevokeToken(w http.ResponseWriter, r *http.Request) error {
	token, err := m.RevokeToken(r.Context(), r.PathValue("account"), r.PathValue("id"))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, token)
}
