package meter

import "tallystick/internal/web"

// Routes lists what the metering API serves.
func (m *Meter) Routes() []web.Route {
	return []web.Route{
		{Method: "PUT", Pattern: "/v1/accounts/{account}", Scope: ScopeAdmin, Handler: m.handlePutAccount},
		{Method: "GET", Pattern: "/v1/accounts/{account}", Scope: ScopeRead, Handler: m.handleGetAccount},
		{Method: "GET", Pattern: "/v1/accounts", Scope: ScopeRead, Handler: m.handleListAccounts},
		{Method: "GET", Pattern: "/v1/accounts/{account}/transfers", Scope: ScopeRead, Handler: m.handleTransfers},
		{Method: "GET", Pattern: "/v1/accounts/{account}/usage", Scope: ScopeRead, Handler: m.handleUsageTotals},
		{Method: "POST", Pattern: "/v1/accounts/{account}/grants", Scope: ScopeAdmin, Handler: m.handleGrant},
		{Method: "POST", Pattern: "/v1/accounts/{account}/adjustments", Scope: ScopeAdmin, Handler: m.handleAdjustment},
		{Method: "PUT", Pattern: "/v1/meters/{meter}", Scope: ScopeAdmin, Handler: m.handlePutMeter},
		{Method: "GET", Pattern: "/v1/meters/{meter}", Scope: ScopeRead, Handler: m.handleGetMeter},
		{Method: "GET", Pattern: "/v1/meters/{meter}/rates", Scope: ScopeRead, Handler: m.handleListRates},
		{Method: "GET", Pattern: "/v1/meters", Scope: ScopeRead, Handler: m.handleListMeters},
		{Method: "POST", Pattern: "/v1/usage", Scope: ScopeUsage, Handler: m.handleUsage},
		{Method: "POST", Pattern: "/v1/usage/batch", Scope: ScopeUsage, Handler: m.handleUsageBatch},
		{Method: "GET", Pattern: "/v1/usage/{id}", Scope: ScopeRead, Handler: m.handleGetUsage},
		{Method: "POST", Pattern: "/v1/usage/{id}/void", Scope: ScopeAdmin, Handler: m.handleVoid},
		{Method: "POST", Pattern: "/v1/reservations", Scope: ScopeUsage, Handler: m.handleReserve},
		{Method: "GET", Pattern: "/v1/reservations", Scope: ScopeRead, Handler: m.handleListReservations},
		{Method: "GET", Pattern: "/v1/reservations/{id}", Scope: ScopeRead, Handler: m.handleGetReservation},
		{Method: "POST", Pattern: "/v1/reservations/{id}/capture", Scope: ScopeUsage, Handler: m.handleCapture},
		{Method: "POST", Pattern: "/v1/reservations/{id}/release", Scope: ScopeUsage, Handler: m.handleRelease},
		{Method: "POST", Pattern: "/v1/reservations/{id}/extend", Scope: ScopeUsage, Handler: m.handleExtend},
		{Method: "POST", Pattern: "/v1/reservations/{id}/doubt", Scope: ScopeUsage, Handler: m.handleDoubt},
		{Method: "GET", Pattern: "/v1/keys", Scope: ScopeAdmin, Handler: m.handleListKeys},
		{Method: "POST", Pattern: "/v1/keys", Scope: ScopeAdmin, Handler: m.handleCreateKey},
		{Method: "DELETE", Pattern: "/v1/keys/{id}", Scope: ScopeAdmin, Handler: m.handleRevokeKey},
	}
}
