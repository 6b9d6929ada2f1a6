//go:build !unix

package client

import "errors"

// lock is refused where nothing releases a lock when its process is killed.
func lock(string) (unlock func() error, err error) {
	return nil, errors.New("a spool needs a Unix, for a lock that ends with its process")
}
