package pg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"tallystick/migrations"
)

// Migration is one step that Migrate applied.
type Migration struct {
	Version int64
	Name    string
}

// Migrate brings the schema of the database at dsn up to this binary's, under an
// advisory lock, so that several processes may start at once. It runs as the
// role of the DSN, which must own the database and may create ServiceRole.
func Migrate(ctx context.Context, dsn string) ([]Migration, error) {
	provider, closeDB, err := provider(dsn)
	if err != nil {
		return nil, err
	}
	defer closeDB()
	results, err := provider.Up(ctx)
	if err != nil {
		return nil, away(fmt.Errorf("migrate: %w", err))
	}
	applied := make([]Migration, 0, len(results))
	for _, r := range results {
		applied = append(applied, Migration{Version: r.Source.Version, Name: r.Source.Path})
	}
	return applied, nil
}

// Pending tells how many migrations the database at dsn still lacks.
func Pending(ctx context.Context, dsn string) (int, error) {
	provider, closeDB, err := provider(dsn)
	if err != nil {
		return 0, err
	}
	defer closeDB()
	current, target, err := provider.GetVersions(ctx)
	if err != nil {
		return 0, away(fmt.Errorf("read the schema's version: %w", err))
	}
	pending := 0
	for _, source := range provider.ListSources() {
		if source.Version > current && source.Version <= target {
			pending++
		}
	}
	return pending, nil
}

func provider(dsn string) (*goose.Provider, func(), error) {
	full, err := withSettings(dsn, Options{Owner: true, ApplicationName: "tallystick migrate"})
	if err != nil {
		return nil, nil, err
	}
	db, err := sql.Open("postgres", full)
	if err != nil {
		return nil, nil, errors.New("the database address cannot be read")
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, nil, err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS, goose.WithSessionLocker(locker))
	if err != nil {
		_ = db.Close()
		return nil, nil, fmt.Errorf("read the embedded migrations: %w", err)
	}
	return p, func() { _ = db.Close() }, nil
}
