// Package retention keeps the table usage in partitions, one for each UTC month
// of recorded_at: it makes them ahead of time, and archives old ones.
//
// An archived month is a file of all its usage, checked against the table before
// the rows went, and its hourly sums, which stay in the database for good. The
// ids of its usage stay refused, because the journal of transfers is never let go
// of: see meter, which looks a usage up there before it charges.
package retention
