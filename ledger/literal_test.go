package ledger

import (
	"fmt"
	"testing"

	"github.com/lib/pq"
	"pgregory.net/rapid"

	"tallystick/internal/credit"
)

// TestGrantLiteralsAreArrays compares the array literals with those of lib/pq.
func TestGrantLiteralsAreArrays(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		transfer := Transfer{GrantIDs: rapid.SliceOfN(rapid.String(), 0, 5).Draw(t, "ids")}
		amounts := pq.Int64Array{}
		for range transfer.GrantIDs {
			n := rapid.Int64().Draw(t, "amount")
			transfer.GrantAmounts, amounts = append(transfer.GrantAmounts, credit.Amount(n)), append(amounts, n)
		}
		wantIDs, _ := pq.StringArray(append([]string{}, transfer.GrantIDs...)).Value()
		wantAmounts, _ := amounts.Value()
		ids, changes := grantLiterals(&transfer)
		if ids != fmt.Sprint(wantIDs) || changes != fmt.Sprint(wantAmounts) {
			t.Fatalf("the literals are %s and %s, want %v and %v", ids, changes, wantIDs, wantAmounts)
		}
	})
}
