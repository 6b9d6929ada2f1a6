package pg_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

func TestReadRefusesWrites(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	err := db.Read(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec("UPDATE meters SET unit = ''")
		return err
	})
	if err == nil {
		t.Fatal("a write in Read succeeded")
	}
}

func TestServiceRoleCannotChangeJournals(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for _, statement := range []string{
		"UPDATE transfers SET amount = 1", "DELETE FROM transfers", "UPDATE usage SET credits = 1", "DELETE FROM usage",
		"DELETE FROM grants", "UPDATE grants SET credits = 1", "DELETE FROM accounts", "DELETE FROM stripe_events",
		"UPDATE stripe_events SET payload = ''", "TRUNCATE transfers", "UPDATE meter_rates SET credits_per_unit = 1", "DELETE FROM adjustments",
	} {
		err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
			_, err := tx.Exec(statement)
			return err
		})
		if !pg.IsCode(err, pg.CodePrivilege) {
			t.Errorf("%s as the service: got %v, want a refusal for lack of privilege", statement, err)
		}
	}
}

func TestInTxRepeatsADeadlockAndRollsBackOnError(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	runs := 0
	err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		runs++
		if runs < 3 {
			_, err := tx.Exec("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40P01'; END $$")
			return err
		}
		return nil
	})
	if err != nil || runs != 3 {
		t.Errorf("after two planted deadlocks: %d runs, error %v; want 3 and none", runs, err)
	}
	runs = 0
	err = db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		runs++
		_, err := tx.Exec("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40001'; END $$")
		return err
	})
	if !errors.Is(err, fault.ErrUnavailable) || runs != 5 {
		t.Errorf("endless serialization failures: %d runs, error %v; want 5 runs and unavailable", runs, err)
	}
}

func TestUnavailableWhenTheServerIsAwayAndBackWithoutRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	db := pgtest.Open(t, server.DSN("tallystick"), pg.Options{})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := db.Ping(t.Context()); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("ping of a killed server: %v, want unavailable", err)
	}
	if err := server.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := db.Ping(t.Context()); err != nil {
		t.Errorf("ping after the server came back: %v", err)
	}
}
