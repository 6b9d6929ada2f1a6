//go:build unix

package client

import (
	"errors"
	"os"
	"syscall"
)

// lock takes a file for this process, until unlock or the process's end.
func lock(name string) (unlock func() error, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errors.New("another process has it open; give each process a directory of its own")
		}
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}
