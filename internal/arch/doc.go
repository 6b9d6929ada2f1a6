// Package arch holds the rules of the tree that a compiler does not know: which
// package may import which, how long a function may be, who may read the clock,
// and that every SQL statement fits the schema. Its tests parse the sources
// themselves: a tool run beside them would leave the test cache unaware of
// what it read, and a broken rule would show an old "ok".
package arch
