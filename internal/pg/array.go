package pg

import (
	"database/sql/driver"
	"encoding/binary"
	"time"
)

// What is sent by the thousand need not be written as text and read back: these
// are arrays of a statement's parameters in Postgres's binary format. The type of
// the parameter must be named in the statement and be exactly the one given here.
type (
	// Smallints is a smallint[].
	Smallints []int16
	// Integers is an integer[].
	Integers []int32
	// Bigints is a bigint[].
	Bigints []int64
	// Texts is a text[].
	Texts []string
	// Byteas is a bytea[]; nil is NULL.
	Byteas [][]byte
	// Times is a timestamptz[]; the zero time is NULL, and what is finer than a
	// microsecond is cut off.
	Times []time.Time
)

// Object identifiers of the element types, from pg_type.dat.
const (
	oidBytea       = 17
	oidBigint      = 20
	oidSmallint    = 21
	oidInteger     = 23
	oidText        = 25
	oidTimestamptz = 1184
)

// epoch is where Postgres counts microseconds from.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// array begins an array of one dimension; size is what its elements take.
func array(oid uint32, n, size int) []byte {
	dimensions := uint32(1)
	if n == 0 {
		dimensions = 0
	}
	b := make([]byte, 0, 20+4*n+size)
	b = binary.BigEndian.AppendUint32(b, dimensions)
	b = binary.BigEndian.AppendUint32(b, 0) // Postgres looks for NULLs by itself
	b = binary.BigEndian.AppendUint32(b, oid)
	if n > 0 {
		b = binary.BigEndian.AppendUint32(b, uint32(n)) //nolint:gosec // no array of ours comes near
		b = binary.BigEndian.AppendUint32(b, 1)
	}
	return b
}

// Value is the array as Postgres receives it.
func (a Smallints) Value() (driver.Value, error) {
	b := array(oidSmallint, len(a), 2*len(a))
	for _, n := range a {
		b = binary.BigEndian.AppendUint32(b, 2)
		b = binary.BigEndian.AppendUint16(b, uint16(n)) //nolint:gosec // the same bits
	}
	return b, nil
}

// Value is the array as Postgres receives it.
func (a Integers) Value() (driver.Value, error) {
	b := array(oidInteger, len(a), 4*len(a))
	for _, n := range a {
		b = binary.BigEndian.AppendUint32(b, 4)
		b = binary.BigEndian.AppendUint32(b, uint32(n)) //nolint:gosec // the same bits
	}
	return b, nil
}

// Value is the array as Postgres receives it.
func (a Bigints) Value() (driver.Value, error) {
	b := array(oidBigint, len(a), 8*len(a))
	for _, n := range a {
		b = appendBigint(b, n)
	}
	return b, nil
}

// Value is the array as Postgres receives it.
func (a Texts) Value() (driver.Value, error) {
	size := 0
	for _, s := range a {
		size += len(s)
	}
	b := array(oidText, len(a), size)
	for _, s := range a {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s))) //nolint:gosec // bounded by the body of a request
		b = append(b, s...)
	}
	return b, nil
}

// Value is the array as Postgres receives it.
func (a Byteas) Value() (driver.Value, error) {
	size := 0
	for _, s := range a {
		size += len(s)
	}
	b := array(oidBytea, len(a), size)
	for _, s := range a {
		if s == nil {
			b = appendNull(b)
			continue
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(s))) //nolint:gosec // bounded by the body of a request
		b = append(b, s...)
	}
	return b, nil
}

// Value is the array as Postgres receives it.
func (a Times) Value() (driver.Value, error) {
	b := array(oidTimestamptz, len(a), 8*len(a))
	for _, t := range a {
		if t.IsZero() {
			b = appendNull(b)
			continue
		}
		b = appendBigint(b, t.UnixMicro()-epoch.UnixMicro())
	}
	return b, nil
}

func appendBigint(b []byte, n int64) []byte {
	b = binary.BigEndian.AppendUint32(b, 8)
	return binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // the same bits
}

// appendNull appends a length of minus one.
func appendNull(b []byte) []byte { return binary.BigEndian.AppendUint32(b, 0xffffffff) }
