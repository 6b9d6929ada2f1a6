package stripesim

// FailJournal makes every further write of the journal fail, as a full disk does.
func (s *Server) FailJournal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store.journal.Close()
}
