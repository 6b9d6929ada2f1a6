package meter

import (
	"net/http"

	"tallystick/api"
	"tallystick/internal/web"
)

func (m *Meter) handleCreateKey(w http.ResponseWriter, r *http.Request) error {
	var q api.KeyRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	key, err := m.CreateKey(r.Context(), q)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusCreated, key)
}

func (m *Meter) handleListKeys(w http.ResponseWriter, r *http.Request) error {
	after := ""
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	keys, err := m.ListKeys(r.Context(), after, limit+1)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, web.Paged(keys, limit, func(k api.Key) any { return k.ID }))
}

func (m *Meter) handleRotateKey(w http.ResponseWriter, r *http.Request) error {
	var q api.RotateRequest
	if r.ContentLength != 0 {
		if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
			return err
		}
	}
	key, err := m.RotateKey(r.Context(), r.PathValue("id"), q)
	return respondKey(w, key, err)
}

func (m *Meter) handlePutLimit(w http.ResponseWriter, r *http.Request) error {
	var q api.RateLimit
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	key, err := m.LimitKey(r.Context(), r.PathValue("id"), &q)
	return respondKey(w, key, err)
}

func (m *Meter) handleLiftLimit(w http.ResponseWriter, r *http.Request) error {
	key, err := m.LimitKey(r.Context(), r.PathValue("id"), nil)
	return respondKey(w, key, err)
}

func (m *Meter) handleRevokeKey(w http.ResponseWriter, r *http.Request) error {
	key, err := m.RevokeKey(r.Context(), r.PathValue("id"))
	return respondKey(w, key, err)
}

func respondKey(w http.ResponseWriter, key api.Key, err error) error {
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, key)
}
