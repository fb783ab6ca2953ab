"""The Lua the store runs: each script is one atomic step and one round trip.

All ages are by the store's own clock, so no member's clock matters (reliability F17). Keys beside
those declared are of the same hash tag.
"""

ANNOUNCE = """
-- KEYS member, members, memory; ARGV id, record, ttl_ms, random word, channel
local ttl_ms = tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local before = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ttl_ms)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_ms)
redis.call('ZADD', KEYS[2], now_ms + ttl_ms, ARGV[1])
redis.call('SET', KEYS[3], ARGV[4], 'NX')
for i = 2, 3 do
  if redis.call('PTTL', KEYS[i]) < ttl_ms then redis.call('PEXPIRE', KEYS[i], ttl_ms) end
end
if before ~= ARGV[2] then redis.call('PUBLISH', ARGV[5], ARGV[1]) end
return 1
"""

WITHDRAW = """
-- KEYS member, members; ARGV id, incarnation, channel
local before = redis.call('GET', KEYS[1])
if not before then return 0 end
local is_json, record = pcall(cjson.decode, before)
if is_json and type(record) == 'table' and record.incarnation ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""

READ = """
-- KEYS members, memory; ARGV member key prefix, max members, max bytes of a record
-- Returns the memory word, then id, record, id, record, ... ; an empty record has expired.
local reply = { redis.call('GET', KEYS[2]) or '' }
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1)) do
  local record = redis.pcall('GETRANGE', ARGV[1] .. id, 0, ARGV[3] - 1)
  reply[#reply + 1] = id
  reply[#reply + 1] = type(record) == 'string' and record or 'not a string'
end
return reply
"""

PUT_SETTINGS = """
-- KEYS settings, version; ARGV payload, expected version or -1, editions kept
local version = tonumber(redis.call('GET', KEYS[2]) or '0')
local expected = tonumber(ARGV[2])
if expected >= 0 and expected ~= version then return -version end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
version = version + 1
redis.call('SET', KEYS[2], version)
redis.call('RPUSH', KEYS[1], version .. ' ' .. string.format('%.0f', now_ms) .. ' ' .. ARGV[1])
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[3]), -1)
return version
"""

LEASE_QUOTA = """
-- KEYS quota; ARGV router id, share wanted, demand, ttl_ms
-- Returns share granted, demand of the others, number of the others; as text: Lua cuts numbers.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local leased, demand, others = 0, 0, 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local share, wants, expires_ms = string.match(all[i + 1], '^(%S+) (%S+) (%S+)$')
  if share == nil or tonumber(expires_ms) <= now_ms then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    leased, demand, others = leased + tonumber(share), demand + tonumber(wants), others + 1
  end
end
local granted = math.max(0, math.min(tonumber(ARGV[2]), 1 - leased))
local expires = string.format('%.0f', now_ms + tonumber(ARGV[4]))
local entry = string.format('%.9f %.3f %s', granted, tonumber(ARGV[3]), expires)
redis.call('HSET', KEYS[1], ARGV[1], entry)
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return { string.format('%.9f', granted), string.format('%.3f', demand), tostring(others) }
"""

LEAD = """
-- KEYS leader, term; ARGV holder, address, term held or 0, ttl_ms
-- Returns 1 and the record granted, or 0 and the record that forbids it.
local function read(key)
  local record = redis.call('GET', key) or ''
  local term, holder = string.match(record, '^(%d+) (%S+) %S+$')
  return { record = record, term = tonumber(term) or 0, holder = holder }
end
local term, last = tonumber(ARGV[3]), read(KEYS[2])
if term == 0 then
  local now = read(KEYS[1])
  if now.term > 0 then return { 0, now.record } end
  local time = redis.call('TIME')
  term = math.max(last.term + 1, time[1] * 1000 + math.floor(time[2] / 1000))
elseif last.term > term or (last.term == term and last.holder ~= ARGV[1]) then
  return { 0, last.record }
end
local granted = string.format('%.0f', term) .. ' ' .. ARGV[1] .. ' ' .. ARGV[2]
redis.call('SET', KEYS[1], granted, 'PX', ARGV[4])
redis.call('SET', KEYS[2], granted)
return { 1, granted }
"""

RESIGN = """
-- KEYS leader; ARGV holder, term
local term, holder = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%S+) %S+$')
if term ~= ARGV[2] or holder ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

PUT_DEPLOYMENT = """
-- KEYS deployment, term; ARGV text, term
-- Returns the record of a higher term, which forbids it, or nothing.
local last = redis.call('GET', KEYS[2]) or ''
if (tonumber(string.match(last, '^(%d+) %S+ %S+$')) or 0) > tonumber(ARGV[2]) then return last end
redis.call('SET', KEYS[1], ARGV[1])
return ''
"""

STATE = """
-- KEYS deployment, term, shared key, version, settings
-- ARGV most bytes of each of the first four and of an edition, editions kept
local reply = {}
for i = 1, 4 do reply[i] = redis.call('GETRANGE', KEYS[i], 0, ARGV[i] - 1) end
for _, entry in ipairs(redis.call('LRANGE', KEYS[5], -tonumber(ARGV[6]), -1)) do
  if #entry <= tonumber(ARGV[5]) then reply[#reply + 1] = entry end
end
return reply
"""

RESTORE = """
-- KEYS deployment, term, shared key, version, settings, members
-- ARGV replace 0 or 1, deployment, term record, shared key, version, payload of the newest,
-- editions kept, entries. Empty texts are none.
-- Returns 0 when there is something that may not be replaced.
local replace = ARGV[1] == '1'
if not replace and redis.call('EXISTS', unpack(KEYS)) > 0 then return 0 end
local function term_of(record) return tonumber(string.match(record, '^(%d+) %S+ %S+$')) or 0 end
local last = redis.call('GET', KEYS[2]) or ''
local version = tonumber(redis.call('GET', KEYS[4]) or '0') or 0
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4], KEYS[5])
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2]) end
if term_of(ARGV[3]) > term_of(last) then redis.call('SET', KEYS[2], ARGV[3]) end
if ARGV[4] ~= '' then redis.call('SET', KEYS[3], ARGV[4]) end
if ARGV[5] == '0' then return 1 end
for i = 8, #ARGV do redis.call('RPUSH', KEYS[5], ARGV[i]) end
if not replace or ARGV[6] == '' then redis.call('SET', KEYS[4], ARGV[5]) return 1 end
-- A version that nobody can have in force already: all take these settings over.
version = string.format('%.0f', math.max(version, tonumber(ARGV[5])) + 1)
local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('RPUSH', KEYS[5], version .. ' ' .. now_ms .. ' ' .. ARGV[6])
redis.call('LTRIM', KEYS[5], -tonumber(ARGV[7]), -1)
redis.call('SET', KEYS[4], version)
return 1
"""
