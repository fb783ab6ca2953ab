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
