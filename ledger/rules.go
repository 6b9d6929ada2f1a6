package ledger

// sqlVerifyBalances is L4.
const sqlVerifyBalances = `
	SELECT a.account || ': balance ' || a.available || '/' || a.held || '/' || a.debt || ', journal ' || coalesce(j.available, 0) || '/' ||
		coalesce(j.held, 0) || '/' || coalesce(j.debt, 0) || ' (available/held/debt, millionths)'
	FROM accounts a
	LEFT JOIN (
		SELECT part, account,
			sum(CASE WHEN target = 'available' THEN amount WHEN source = 'available' THEN -amount ELSE 0 END) AS available,
			sum(CASE WHEN target = 'held' THEN amount WHEN source = 'held' THEN -amount ELSE 0 END) AS held,
			sum(CASE WHEN source = 'debt' THEN amount WHEN target = 'debt' THEN -amount ELSE 0 END) AS debt
		FROM transfers GROUP BY part, account
	) j ON j.part = a.part AND j.account = a.account
	WHERE (a.available, a.held, a.debt) IS DISTINCT FROM (coalesce(j.available, 0), coalesce(j.held, 0), coalesce(j.debt, 0))`

// sqlVerifyBounds is L5; the constraints hold it, this proves that they stand.
const sqlVerifyBounds = `
	SELECT account || ': available ' || available || ', overdraft ' || overdraft || ', held ' || held || ', debt ' || debt || ' (millionths)'
	FROM accounts
	WHERE available < -overdraft OR held < 0 OR debt < 0`

// sqlVerifyVersions is L3.
const sqlVerifyVersions = `
	SELECT a.account || ': version ' || a.version || ', ' || coalesce(j.count, 0) || ' transfers up to version ' || coalesce(j.last, 0)
	FROM accounts a
	LEFT JOIN (SELECT part, account, count(*) AS count, max(version) AS last, min(version) AS first FROM transfers GROUP BY part, account) j
		ON j.part = a.part AND j.account = a.account
	WHERE (a.version, a.version) IS DISTINCT FROM (coalesce(j.count, 0), coalesce(j.last, 0)) OR j.first <> 1`

// sqlVerifyRunning compares the balance that each transfer left behind with the
// sum of the transfers up to it.
const sqlVerifyRunning = `
	SELECT account || ', transfer ' || version || ': it says ' || available_after || ' available, the journal up to it ' || available
	FROM (
		SELECT part, account, version, available_after, held_after, debt_after,
			sum(CASE WHEN target = 'available' THEN amount WHEN source = 'available' THEN -amount ELSE 0 END) OVER w AS available,
			sum(CASE WHEN target = 'held' THEN amount WHEN source = 'held' THEN -amount ELSE 0 END) OVER w AS held,
			sum(CASE WHEN source = 'debt' THEN amount WHEN target = 'debt' THEN -amount ELSE 0 END) OVER w AS debt
		FROM transfers
		WINDOW w AS (PARTITION BY part, account ORDER BY version)
	) t
	WHERE (available_after, held_after, debt_after) IS DISTINCT FROM (available, held, debt)`

// sqlVerifyGrants is L6.
const sqlVerifyGrants = `
	SELECT g.account || ', grant ' || g.grant_id || ': ' || g.remaining || ' remain, the journal says ' || coalesce(j.remaining, 0) || ' (millionths)'
	FROM grants g
	LEFT JOIN (
		SELECT t.part, t.account, c.grant_id, sum(c.change) AS remaining
		FROM transfers t CROSS JOIN LATERAL unnest(t.grant_ids, t.grant_amounts) AS c (grant_id, change)
		GROUP BY t.part, t.account, c.grant_id
	) j ON j.part = g.part AND j.account = g.account AND j.grant_id = g.grant_id
	WHERE g.remaining <> coalesce(j.remaining, 0) OR g.remaining < 0 OR g.remaining > g.credits`

// sqlVerifyAvailable is L7.
const sqlVerifyAvailable = `
	SELECT a.account || ': ' || a.available || ' available, open grants hold ' || coalesce(g.remaining, 0) || ' (millionths)'
	FROM accounts a
	LEFT JOIN (SELECT part, account, sum(remaining) AS remaining FROM grants WHERE remaining > 0 GROUP BY part, account) g
		ON g.part = a.part AND g.account = a.account
	WHERE greatest(a.available, 0) <> coalesce(g.remaining, 0)`

// sqlVerifyUsage is L8 for usage, in both directions, but for months that were
// archived. A capture may take several transfers, out of the hold, the balance
// and into debt; the last is its usage's.
const sqlVerifyUsage = `
	SELECT coalesce(u.account, t.account) || ', usage ' || coalesce(u.usage_id, t.cause) || ': ' || CASE
		WHEN u.usage_id IS NULL THEN 'a transfer without usage'
		WHEN t.version IS NULL THEN 'no transfer of its own'
		WHEN u.recorded_at <> t.posted_at THEN 'recorded at ' || u.recorded_at || ', transferred at ' || t.posted_at
		ELSE 'charged ' || u.credits || ', transferred ' || t.amount END
	FROM usage u
	FULL JOIN (
		SELECT part, account, version, cause, amount, posted_at FROM transfers WHERE kind = 'usage'
		UNION ALL
		SELECT part, account, max(version), 'reservation@' || cause, sum(amount), max(posted_at) FROM transfers WHERE kind = 'capture' GROUP BY part, account, cause
	) t
		ON t.part = u.part AND t.account = u.account AND t.version = u.transfer_version AND t.cause = u.usage_id
	WHERE (u.usage_id IS NULL OR t.version IS NULL OR u.credits <> t.amount OR u.recorded_at <> t.posted_at)
		AND NOT (u.usage_id IS NULL AND EXISTS (SELECT FROM usage_archives a WHERE t.posted_at >= a.month AND t.posted_at < a.until))`

// sqlVerifyRates makes sure that each usage, and each reservation, names a rate
// that was in force once.
const sqlVerifyRates = `
	SELECT u.account || ', ' || u.what || ' ' || u.id || ': version ' || u.rate_version || ' of the rates of ' || u.meter || ' is unknown'
	FROM (
		SELECT account, 'usage' AS what, usage_id AS id, meter, rate_version FROM usage
		UNION ALL
		SELECT account, 'reservation', reservation_id, meter, rate_version FROM reservations
	) u
	WHERE NOT EXISTS (SELECT FROM meter_rates r WHERE r.meter = u.meter AND r.version = u.rate_version)`

// sqlVerifyAccounts makes sure that each transfer is some account's. The rules
// about balances begin at the accounts, and would not see it.
const sqlVerifyAccounts = `
	SELECT t.account || ': ' || count(*) || ' transfers, but no account'
	FROM transfers t
	WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.part = t.part AND a.account = t.account)
	GROUP BY t.part, t.account`

// sqlVerifyArchives compares what stays of archived months with the journal, per
// account, in both directions.
const sqlVerifyArchives = `
	SELECT coalesce(h.account, t.account) || ', archive of ' || to_char(coalesce(h.month, t.month), 'YYYY-MM') || ': ' || coalesce(h.usages, 0) ||
		' usages charged ' || coalesce(h.credits, 0) || ', the journal has ' || coalesce(t.usages, 0) || ' at ' || coalesce(t.credits, 0) || ' (millionths)'
	FROM (SELECT part, account, month, sum(usages) AS usages, sum(credits) AS credits FROM usage_hours GROUP BY part, account, month) h
	FULL JOIN (
		SELECT t.part, t.account, a.month, sum(t.amount) AS credits,
			count(*) FILTER (WHERE t.kind = 'usage') + count(DISTINCT t.cause) FILTER (WHERE t.kind = 'capture') AS usages
		FROM usage_archives a JOIN transfers t ON t.posted_at >= a.month AND t.posted_at < a.until
		WHERE t.kind IN ('usage', 'capture')
		GROUP BY t.part, t.account, a.month
	) t ON t.part = h.part AND t.account = h.account AND t.month = h.month
	WHERE (h.usages, h.credits) IS DISTINCT FROM (t.usages, t.credits)`

// sqlVerifyArchiveSums compares an archive with its hours, and makes sure that no
// usage of its month stands beside them: it would count twice.
const sqlVerifyArchiveSums = `
	SELECT 'archive of ' || to_char(coalesce(a.month, h.month), 'YYYY-MM') || ': ' || CASE
		WHEN a.month IS NULL THEN 'hours of a month that was not archived'
		WHEN a.live > 0 THEN a.live || ' usages of it stand beside its hours'
		ELSE 'holds ' || a.usages || ' usages, quantity ' || a.quantity || ', credits ' || a.credits || ', staged ' || a.staged || '; its hours hold ' ||
			coalesce(h.usages, 0) || ', ' || coalesce(h.quantity, 0) || ', ' || coalesce(h.credits, 0) || ', ' || coalesce(h.staged, 0) END
	FROM (
		SELECT month, usages, quantity, credits, staged,
			(SELECT count(*) FROM usage u WHERE u.recorded_at >= month AND u.recorded_at < until) AS live
		FROM usage_archives
	) a
	FULL JOIN (
		SELECT month, sum(usages) AS usages, sum(quantity) AS quantity, sum(credits) AS credits, sum(staged) AS staged FROM usage_hours GROUP BY month
	) h ON h.month = a.month
	WHERE a.month IS NULL OR a.live > 0
		OR (a.usages, a.quantity, a.credits, a.staged) IS DISTINCT FROM (coalesce(h.usages, 0), coalesce(h.quantity, 0), coalesce(h.credits, 0), coalesce(h.staged, 0))`

// sqlVerifyGrantTransfers is L8 for grants, in both directions.
const sqlVerifyGrantTransfers = `
	SELECT coalesce(g.account, t.account) || ', grant ' || coalesce(g.grant_id, t.cause) || ': ' || CASE
		WHEN g.grant_id IS NULL THEN 'a transfer without a grant'
		WHEN t.version IS NULL THEN 'no transfer of its own'
		ELSE 'grants ' || g.credits || ', transferred ' || t.amount END
	FROM grants g
	FULL JOIN (SELECT part, account, version, cause, kind, amount FROM transfers WHERE kind IN ('purchase', 'grant')) t
		ON t.part = g.part AND t.account = g.account AND t.version = g.transfer_version AND t.kind = g.kind
	WHERE (g.grant_id IS NULL OR t.version IS NULL OR g.credits <> t.amount)
		AND NOT EXISTS (SELECT 1 FROM transfers a WHERE a.part = g.part AND a.account = g.account AND a.version = g.transfer_version
			AND a.kind = 'adjustment' AND a.amount = g.credits)
		AND NOT EXISTS (SELECT 1 FROM transfers h CROSS JOIN LATERAL unnest(h.grant_ids, h.grant_amounts) AS c (grant_id, change)
			WHERE h.part = g.part AND h.account = g.account AND h.version = g.transfer_version
			AND (h.kind, g.grant_id) IN (('unhold', 'reservation:' || h.cause), ('void', 'void@' || h.cause)) AND c.grant_id = g.grant_id AND c.change = g.credits)`

// sqlVerifyAdjustments is L8 for adjustments, in both directions.
const sqlVerifyAdjustments = `
	SELECT coalesce(d.account, t.account) || ', adjustment ' || coalesce(d.adjustment_id, t.cause) || ': ' || CASE
		WHEN d.adjustment_id IS NULL THEN 'a transfer without an adjustment'
		WHEN t.version IS NULL THEN 'no transfer of its own'
		ELSE 'adjusts ' || d.credits || ', transferred ' || t.amount END
	FROM adjustments d
	FULL JOIN (SELECT part, account, version, cause, CASE WHEN source = 'available' THEN -amount ELSE amount END AS amount FROM transfers WHERE kind = 'adjustment') t
		ON t.part = d.part AND t.account = d.account AND t.version = d.transfer_version AND t.cause = d.adjustment_id
	WHERE d.adjustment_id IS NULL OR t.version IS NULL OR d.credits <> t.amount`

// sqlVerifyDeliveries compares what accepted usage staged, less what voids took
// back, with what is staged. A repair may stand in for a row that was lost, and may send more than that again.
const sqlVerifyDeliveries = `
	SELECT coalesce(u.account, d.account) || ', meter ' || coalesce(u.meter, d.meter) || ': usage staged ' || coalesce(u.staged, 0) || ', deliveries hold ' ||
		coalesce(d.staged, 0) || ' and repairs ' || coalesce(d.repaired, 0) || ' (millionths)'
	FROM (
		SELECT part, account, meter, sum(staged) AS staged
		FROM (
			SELECT u.part, u.account, u.meter, u.staged - coalesce(v.staged, 0) AS staged
			FROM usage u LEFT JOIN usage_voids v ON v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id
			UNION ALL
			SELECT part, account, meter, staged - withdrawn FROM usage_hours
		) s
		GROUP BY part, account, meter HAVING sum(staged) <> 0
	) u
	FULL JOIN (
		SELECT part, account, meter, coalesce(sum(quantity) FILTER (WHERE origin = 'usage'), 0) AS staged,
			coalesce(sum(quantity) FILTER (WHERE origin = 'repair'), 0) AS repaired
		FROM deliveries GROUP BY part, account, meter
	) d ON d.part = u.part AND d.account = u.account AND d.meter = u.meter
	WHERE coalesce(u.staged, 0) NOT BETWEEN coalesce(d.staged, 0) AND coalesce(d.staged, 0) + coalesce(d.repaired, 0)`

// sqlVerifyIdentifiers makes sure that no two deliveries share an identifier:
// Stripe would take the second for a repeat of the first, and drop it.
const sqlVerifyIdentifiers = `
	SELECT identifier || ': ' || count(*) || ' deliveries'
	FROM deliveries WHERE identifier <> '' GROUP BY identifier HAVING count(*) > 1`

// sqlVerifyPayments compares payments that were granted with purchase grants.
const sqlVerifyPayments = `
	SELECT coalesce(p.payment_id, g.payment) || ': ' || CASE
		WHEN p.payment_id IS NULL THEN 'purchase grant ' || g.grant_id || ' of ' || g.account || ' without a payment'
		WHEN g.grant_id IS NULL THEN 'granted, but its grant is missing'
		ELSE 'bought ' || p.credits || ', granted ' || g.credits END
	FROM (SELECT payment_id, part, account, grant_id, credits FROM payments WHERE state = 'granted') p
	FULL JOIN (SELECT part, account, grant_id, payment, credits FROM grants WHERE kind = 'purchase') g
		ON g.part = p.part AND g.account = p.account AND g.grant_id = p.grant_id
	WHERE p.payment_id IS NULL OR g.grant_id IS NULL OR p.credits <> g.credits OR g.payment IS DISTINCT FROM p.payment_id`

// sqlVerifyClawbacks makes sure that returns never take back more than was bought.
const sqlVerifyClawbacks = `
	SELECT g.account || ', grant ' || g.grant_id || ': returns took ' || sum(c.credits) || ' of ' || g.credits
	FROM clawbacks c JOIN grants g ON g.part = c.part AND g.account = c.account AND g.grant_id = c.grant_id
	GROUP BY g.part, g.account, g.grant_id, g.credits HAVING sum(c.credits) > g.credits`

// sqlVerifyClawbackTransfers compares what each clawback has taken with the journal.
const sqlVerifyClawbackTransfers = `
	SELECT c.account || ', ' || c.kind || ' ' || c.refund_id || ': has taken ' || c.credits || ', the journal says ' || coalesce(t.taken, 0) || ' (millionths)'
	FROM clawbacks c
	LEFT JOIN (
		SELECT part, account, cause, sum(CASE WHEN kind IN ('refund', 'dispute') THEN amount ELSE -amount END) AS taken
		FROM transfers WHERE kind IN ('refund', 'dispute', 'refund_failed', 'dispute_won')
		GROUP BY part, account, cause
	) t ON t.part = c.part AND t.account = c.account AND t.cause = c.refund_id
	WHERE c.credits <> coalesce(t.taken, 0)`

// sqlVerifyHeld is L10.
const sqlVerifyHeld = `
	SELECT a.account || ': ' || a.held || ' held, its open reservations hold ' || coalesce(r.credits, 0) || ' (millionths)'
	FROM accounts a
	LEFT JOIN (SELECT part, account, sum(credits) AS credits FROM reservations WHERE state IN ('open', 'in_doubt') GROUP BY part, account) r
		ON r.part = a.part AND r.account = a.account
	WHERE a.held <> coalesce(r.credits, 0)`

// sqlVerifyHolds is L11, in both directions.
const sqlVerifyHolds = `
	SELECT coalesce(r.account, j.account) || ', reservation ' || coalesce(r.reservation_id, j.cause) || ': ' || CASE
		WHEN r.reservation_id IS NULL THEN 'transfers without a reservation'
		WHEN j.cause IS NULL THEN 'no transfers of its own'
		ELSE r.state || ' with ' || r.credits || ' held, ' || r.captured || ' captured, ' || r.returned || ' returned, ' || r.expired || ' expired; the journal says ' ||
			j.held || ', ' || j.captured || ', ' || j.returned || ', ' || j.expired END
	FROM reservations r
	FULL JOIN (
		SELECT part, account, cause, count(*) FILTER (WHERE kind = 'hold') AS holds, coalesce(sum(amount) FILTER (WHERE kind = 'hold'), 0) AS held,
			min(version) FILTER (WHERE kind = 'hold') AS hold_version,
			coalesce(sum(amount) FILTER (WHERE kind = 'capture' AND source = 'held'), 0) AS captured,
			coalesce(sum(amount) FILTER (WHERE kind = 'unhold'), 0) AS returned,
			coalesce(sum(amount) FILTER (WHERE kind = 'expiry' AND source = 'held'), 0) AS expired,
			count(*) FILTER (WHERE kind = 'capture') AS captures
		FROM transfers
		WHERE kind IN ('hold', 'unhold', 'capture') OR source = 'held' OR target = 'held'
		GROUP BY part, account, cause
	) j ON j.part = r.part AND j.account = r.account AND j.cause = r.reservation_id
	WHERE r.reservation_id IS NULL OR j.cause IS NULL OR j.holds <> 1 OR j.hold_version <> r.hold_version
		OR (r.credits, r.captured, r.returned, r.expired) IS DISTINCT FROM (j.held, j.captured, j.returned, j.expired)
		OR (r.end_version IS NOT NULL AND NOT EXISTS (
			SELECT FROM transfers e WHERE e.part = r.part AND e.account = r.account AND e.version = r.end_version AND e.cause = r.reservation_id AND e.kind <> 'hold'))
		OR r.captured + r.returned + r.expired <> CASE WHEN r.state IN ('open', 'in_doubt') THEN 0 ELSE r.credits END
		OR (r.usage_id IS NOT NULL) <> (j.captures > 0) OR (r.state = 'captured' AND r.usage_id IS NULL) OR (r.state IN ('open', 'in_doubt', 'released') AND r.usage_id IS NOT NULL)`

// sqlVerifyCaptures makes sure that each capture is one usage, and each usage of
// a reservation its capture. The usage of one may have been archived.
const sqlVerifyCaptures = `
	SELECT coalesce(r.account, u.account) || ', reservation ' || coalesce(r.reservation_id, u.usage_id) || ': ' ||
		CASE WHEN u.usage_id IS NULL THEN 'captured without usage' ELSE 'usage without a capture' END
	FROM (SELECT part, account, reservation_id, usage_id FROM reservations WHERE usage_id IS NOT NULL) r
	FULL JOIN (SELECT part, account, usage_id FROM usage WHERE usage_id LIKE 'reservation@%') u
		ON u.part = r.part AND u.account = r.account AND u.usage_id = r.usage_id AND u.usage_id = 'reservation@' || r.reservation_id
	WHERE (r.reservation_id IS NULL OR u.usage_id IS NULL)
		AND NOT (u.usage_id IS NULL AND EXISTS (
			SELECT FROM transfers t JOIN usage_archives a ON t.posted_at >= a.month AND t.posted_at < a.until
			WHERE t.part = r.part AND t.account || '' = r.account AND t.cause = r.reservation_id AND t.kind = 'capture'))`

// sqlVerifyVoids is L12, in both directions. What expired of a void is transfers
// of its own, out of usage.
const sqlVerifyVoids = `
	SELECT coalesce(v.account, t.account) || ', usage ' || coalesce(v.usage_id, t.cause) || ': ' || CASE
		WHEN v.usage_id IS NULL THEN 'given back without a void'
		WHEN v.charged_at IS NULL THEN 'a void of usage that was never charged'
		WHEN t.cause IS NULL THEN 'voided without a transfer'
		ELSE 'charged ' || v.credits || ', returned ' || v.returned || ' and expired ' || v.expired || '; the journal says ' || t.returned || ' and ' || t.expired END
	FROM (
		SELECT v.part, v.account, v.usage_id, v.returned, v.expired, v.transfer_version, c.credits, c.charged_at
		FROM usage_voids v
		LEFT JOIN (
			SELECT part, account, CASE kind WHEN 'usage' THEN cause ELSE 'reservation@' || cause END AS usage_id, sum(amount) AS credits, max(posted_at) AS charged_at
			FROM transfers WHERE kind IN ('usage', 'capture') GROUP BY part, account, kind, cause
		) c ON c.part = v.part AND c.account = v.account AND c.usage_id = v.usage_id
	) v
	FULL JOIN (
		SELECT part, account, cause, max(version) FILTER (WHERE kind = 'void') AS version, count(*) FILTER (WHERE kind = 'void') AS voids,
			coalesce(sum(amount) FILTER (WHERE kind = 'void'), 0) AS returned, coalesce(sum(amount) FILTER (WHERE kind = 'expiry'), 0) AS expired
		FROM transfers WHERE source = 'usage' GROUP BY part, account, cause
	) t ON t.part = v.part AND t.account = v.account AND t.cause = v.usage_id
	WHERE v.usage_id IS NULL OR v.charged_at IS NULL OR t.cause IS NULL OR t.voids <> 1 OR t.version <> v.transfer_version
		OR (v.returned, v.expired) IS DISTINCT FROM (t.returned, t.expired) OR v.returned + v.expired <> v.credits`

func rules() []rule {
	return []rule{
		{"balances", "balances are the sums of the journal", sqlVerifyBalances},
		{"bounds", "no balance is below its bound", sqlVerifyBounds},
		{"versions", "versions rise by one, without gaps", sqlVerifyVersions},
		{"running", "each transfer states the balance it left", sqlVerifyRunning},
		{"grants", "remainders are the sums of the journal", sqlVerifyGrants},
		{"available", "available credits are what the open grants hold", sqlVerifyAvailable},
		{"accounts", "each transfer is some account's", sqlVerifyAccounts},
		{"usage", "each usage has one transfer of its amount, posted when it was recorded", sqlVerifyUsage},
		{"rates", "each usage names a rate that was in force once", sqlVerifyRates},
		{"archives", "the hours that stay of archived usage are what the journal has of their months", sqlVerifyArchives},
		{"archive_sums", "each archive is the sum of its hours, and no usage stands beside them", sqlVerifyArchiveSums},
		{"grant_transfers", "each grant has one transfer of its amount", sqlVerifyGrantTransfers},
		{"adjustments", "each adjustment has one transfer of its amount", sqlVerifyAdjustments},
		{"deliveries", "what accepted usage staged for Stripe is staged, no more and no less", sqlVerifyDeliveries},
		{"identifiers", "no two deliveries share an identifier", sqlVerifyIdentifiers},
		{"held", "what accounts hold is what their open reservations hold", sqlVerifyHeld},
		{"holds", "each reservation ends once, and all that it held is accounted for", sqlVerifyHolds},
		{"captures", "each capture is one usage", sqlVerifyCaptures},
		{"voids", "each voided usage was given back once, to the last millionth", sqlVerifyVoids},
		{"payments", "each granted payment has its purchase grant, and each purchase grant its payment", sqlVerifyPayments},
		{"clawbacks", "refunds and disputes never take back more than was bought", sqlVerifyClawbacks},
		{"clawback_transfers", "each clawback is what its transfers have taken", sqlVerifyClawbackTransfers},
	}
}
