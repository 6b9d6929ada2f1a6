package pgdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dirLock is held by the process that runs a server, for as long as the server
// runs. The kernel lets it go when that process dies, however it dies, so a
// server found on data whose lock is free has lost its owner.
type dirLock struct{ file *os.File }

// takeLock locks dir, or says which process has it.
func takeLock(dir string, user *owner) (*dirLock, error) {
	path := filepath.Join(dir, "tallystick.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := user.give(path); err != nil {
		_ = f.Close()
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory: %w", err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		return nil, fmt.Errorf("the data directory %s is in use by process %s; stop that one first, or choose another --data directory", dir, strings.TrimSpace(string(holder)))
	}
	// The number is for people only: the lock itself says whether somebody is there.
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return &dirLock{file: f}, nil
}

// release unlocks by name before it closes: a process that is just being forked
// holds a copy of the file, and would hold the lock for another instant.
func (l *dirLock) release() {
	_ = syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN)
	_ = l.file.Close()
}
