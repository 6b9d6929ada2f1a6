package pg

import (
	"errors"
	"testing"
)

// TestALoneTransactionRefusesASecondStatement asks for one as InStatement never does.
func TestALoneTransactionRefusesASecondStatement(t *testing.T) {
	t.Parallel()
	c := &preparingConn{lone: loneOpen}
	if err := c.spend(); err != nil {
		t.Fatalf("the first: %v", err)
	}
	if err := c.spend(); !errors.Is(err, errSecond) {
		t.Errorf("the second: %v", err)
	}
	if err := (lone{c}).Commit(); err != nil || c.spend() != nil {
		t.Error("after its end the connection takes no statement of an ordinary transaction")
	}
}
