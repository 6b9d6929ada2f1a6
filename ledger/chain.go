package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
)

// timeLayout is how an instant enters a hash: the microseconds that Postgres keeps.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// chain is the hash of a transfer after the one before it; doc.go defines it.
func chain(previous []byte, t *Transfer) []byte {
	b := make([]byte, 0, 512)
	b = append(b, previous...)
	b = appendInt(b, int64(t.Part))
	b = appendText(b, t.Account)
	b = appendInt(b, t.Version)
	b = appendText(b, string(t.Kind))
	b = appendInt(b, int64(t.Amount))
	b = appendText(b, string(t.Source))
	b = appendText(b, string(t.Target))
	b = appendText(b, t.Cause)
	b = appendInt(b, int64(len(t.GrantIDs)))
	for i, id := range t.GrantIDs {
		b = appendText(b, id)
		b = appendInt(b, int64(t.GrantAmounts[i]))
	}
	b = appendInt(b, int64(t.After.Available))
	b = appendInt(b, int64(t.After.Held))
	b = appendInt(b, int64(t.After.Debt))
	b = appendText(b, t.Actor)
	b = appendText(b, t.Note)
	b = appendText(b, t.PostedAt.UTC().Format(timeLayout))
	sum := sha256.Sum256(b)
	return sum[:]
}

func appendText(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
	return append(b, s...)
}

func appendInt(b []byte, n int64) []byte {
	var digits [20]byte
	text := strconv.AppendInt(digits[:0], n, 10)
	b = binary.BigEndian.AppendUint64(b, uint64(len(text)))
	return append(b, text...)
}
